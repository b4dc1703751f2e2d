"""Kernels of our own for what torch does in several passes over memory on a GPU, in Triton.

Each does in one pass what its twin in `packedesm.esm2.model` does with torch, and rounds where the
twin rounds: sums and products are float32, results have the dtype of what they replace.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import nn

_WIDEST_BLOCK = 1024  # numbers of one program, so that 4 warps have 8 numbers a thread


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    qkv, phases, ROW: tl.constexpr, STRIDE: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < ROW
    at = qkv + token * STRIDE + place
    x = tl.load(at, mask=inside, other=0.0)
    phase = tl.load(phases + token * HEAD + place % HEAD, mask=inside, other=0.0)
    a, b = tl.split(tl.reshape(x.to(tl.float32), (BLOCK // 2, 2)))
    cosine, sine = tl.split(tl.reshape(phase, (BLOCK // 2, 2)))
    rotated = tl.join(a * cosine - b * sine, a * sine + b * cosine)
    tl.store(at, tl.reshape(rotated, (BLOCK,)).to(x.dtype), mask=inside)


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, change, weight, bias, out, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    start = tl.program_id(0).to(tl.int64) * WIDTH
    place = tl.arange(0, BLOCK)
    inside = place < WIDTH
    old = tl.load(x + start + place, mask=inside, other=0.0)
    added = tl.load(change + start + place, mask=inside, other=0.0)
    new = (old.to(tl.float32) + added.to(tl.float32)).to(old.dtype)
    tl.store(x + start + place, new, mask=inside)
    value = new.to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value, 0) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 0) / WIDTH + epsilon)
    scaled = centred * scale * tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    shifted = scaled + tl.load(bias + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + start + place, shifted.to(old.dtype), mask=inside)


def rotate_(qkv: torch.Tensor, rotary: torch.Tensor) -> None:
    """Rotate each pair of neighbours of q and k by its token's phase, in place.

    Parameters
    ----------
    qkv
        (T, 3, H, Dh), contiguous: q, k and v; v stays as it is.
    rotary
        complex64 (T, 1, 1, Dh / 2).
    """
    tokens, _, heads, head_dim = qkv.shape
    if not (qkv.is_contiguous() and rotary.is_contiguous()):
        raise ValueError("qkv and rotary must be contiguous")
    row = 2 * heads * head_dim
    block = min(_WIDEST_BLOCK, triton.next_power_of_2(row))
    with torch.cuda.device_of(qkv):  # Triton launches on the current device, whatever it is given
        _rotate[(tokens, triton.cdiv(row, block))](
            *(qkv, torch.view_as_real(rotary)),
            **{"ROW": row, "STRIDE": 3 * heads * head_dim, "HEAD": head_dim, "BLOCK": block},
        )


def add_norm(x: torch.Tensor, change: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    """Add `change` (T, D) to `x` (T, D) in place, and return the LayerNorm of the sum, (T, D)."""
    if not (x.is_contiguous() and change.is_contiguous()):
        raise ValueError("x and change must be contiguous")
    out = torch.empty_like(x)
    width = x.shape[1]
    with torch.cuda.device_of(x):
        _add_norm[(len(x),)](
            *(x, change, norm.weight, norm.bias, out, norm.eps),
            **{"WIDTH": width, "BLOCK": triton.next_power_of_2(width)},
            num_warps=4 if width <= 2048 else 8,
        )
    return out
