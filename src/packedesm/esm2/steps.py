"""The steps between products in torch: what `packedesm.esm2.triton_kernels` compute in one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from packedesm.alphabet import MASK

# By their names in log and report: what `PackedESM2.fused` and `fused_gelu` are.
KERNELS = {"torch": (False, False), "triton": (True, False), "triton+gelu": (True, True)}
FURTHEST = 400_000  # position up to which the kernel's sines are right; torch's are beyond, too
TRAINED_KEPT = 1 - 0.15 * 0.8  # share of embeddings that training's masking left in place


def embed(input_ids: torch.Tensor, cu_seqlens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return embeddings (T, D) after token dropout, which ESM-2 applies at inference too.

    ``<mask>`` is zero, and every sequence is scaled by 0.88 / (1 - masked / tokens), tokens
    counting ``<cls>`` and ``<eos>``: what remains is as large as it was in training.

    Parameters
    ----------
    input_ids
        int64 (T,).
    cu_seqlens
        int32 (sequences + 1,), where each sequence begins, then T.
    weight
        (33, D), one row for each token of the alphabet.
    """
    masked = input_ids == MASK
    masked_before = F.pad(masked.cumsum(0), (1, 0))[cu_seqlens]
    tokens = cu_seqlens.diff()
    scale = TRAINED_KEPT / (1 - masked_before.diff() / tokens)
    scale = scale.repeat_interleave(tokens, output_size=len(input_ids))
    scale = scale.masked_fill(masked, 0)
    # A float32 scale promotes half-precision embeddings: one rounding, not two.
    return (F.embedding(input_ids, weight) * scale[:, None]).to(weight.dtype)


def phases(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Return e^(i position frequency), complex64 (T, 1, 1, Dh / 2), of float32 frequencies."""
    angles = positions.float()[:, None] * frequencies
    return torch.complex(angles.cos(), angles.sin())[:, None, None]


def rotate(qk: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of neighbours in `qk` (T, 2, H, Dh) by its phase, in float32.

    float32 input may be overwritten unless gradients need it.

    Parameters
    ----------
    rotary
        complex64 (T, 1, 1, Dh / 2).
    """
    pairs = torch.view_as_complex(qk.float().unflatten(-1, (-1, 2)))
    rotated = pairs * rotary if pairs.requires_grad else pairs.mul_(rotary)
    return torch.view_as_real(rotated).flatten(-2).to(qk.dtype)
