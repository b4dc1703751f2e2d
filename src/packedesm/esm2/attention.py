"""Attention within each protein of a pack: one function, several backends, chosen once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from packedesm.errors import UserError
from packedesm.esm2 import attention_needs, kernels
from packedesm.esm2.torch_operators import EFFICIENT, FLASH, MOST_SEQUENCES


class Selection(NamedTuple):
    """The backend that was chosen, and why, for log and report."""

    name: str
    reason: str


class Sequences(NamedTuple):
    """Where the sequences of a pack stand."""

    cu_seqlens: Tensor  # int32 (sequences + 1,), where each begins, then the total
    max_seqlen: int  # tokens of the longest
    lengths: Sequence[int] | None = None  # tokens of each, on the host


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    backend: str = "sdpa",
) -> Tensor:
    """Return softmax(q kᵀ / √head_dim) v, computed within each sequence of the pack.

    The scale is applied here: `q` arrives unscaled.

    Parameters
    ----------
    q, k, v
        Shape (total_tokens, heads, head_dim), one dtype; the last dimension contiguous.
    cu_seqlens
        int32 (sequences + 1,), on the device of `q`: where each sequence begins, then the total.
    max_seqlen
        Length of the longest sequence.
    backend
        A name from `BACKENDS`; `select_backend` finds one that fits.

    Returns
    -------
    Tensor
        Shape (total_tokens, heads, head_dim), dtype of `q`.
    """
    return attend(backend, q, k, v, Sequences(cu_seqlens, max_seqlen))


def attend(
    backend: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequences: Sequences,
    rotary: Tensor | None = None,
) -> Tensor:
    """Return what `varlen_attention` returns, with all that a backend can use.

    Parameters
    ----------
    sequences
        With `lengths`, ``sdpa`` need not copy `cu_seqlens` from the device, which waits for it; nor
        need others for a pack of more sequences than they take at once.
    rotary
        For backends in `WITH_ROTARY` only, complex64 (total_tokens, 1, 1, head_dim / 2): what
        rotary embedding shall rotate each pair of neighbours in `q` and `k` by. Without it that
        has been done.
    """
    if rotary is None:
        return BACKENDS[backend](q, k, v, sequences)
    if backend not in WITH_ROTARY:
        raise ValueError(f"attention {backend} takes q and k that have been rotated")
    return BACKENDS[backend](q, k, v, sequences, rotary)


def select_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> Selection:
    """Return the backend `name`, or for ``auto`` the fastest that is installed and fits.

    Raises
    ------
    UserError
        If a named backend is missing or does not fit, or one that is installed does not import.
    """
    if name != "auto":
        if reason := unavailable_reason(name, device, dtype, head_dim):
            raise UserError(
                f"attention backend {name!r} cannot be used: {reason}; choose auto or sdpa"
            )
        return Selection(name, "named in the configuration")
    passed_over: list[str] = []
    for candidate in PREFERENCE.get(device.type, ("sdpa",)):
        reason = unavailable_reason(candidate, device, dtype, head_dim)
        if reason is None:
            return Selection(candidate, "; ".join(["chosen automatically", *passed_over]))
        passed_over.append(f"not {candidate}: {reason}")
    raise AssertionError("sdpa always fits")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    # Neighbours of one length share a call; each part is one run of such neighbours.
    lengths = _lengths(sequences, len(q))
    alike = ((length, sum(1 for _ in group)) for length, group in groupby(lengths))
    runs = [
        (length, min(count - first, MOST_SEQUENCES))
        for length, count in alike
        for first in range(0, count, MOST_SEQUENCES)
    ]
    tokens = [length * count for length, count in runs]
    attended = []
    for (length, count), *qkv in zip(runs, *(x.split(tokens) for x in (q, k, v)), strict=True):
        # (count * length, H, Dh) -> (count, H, length, Dh), as views
        heads = [x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv]
        attended.append(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(0, 1))
    return torch.cat(attended)


def _varlen_cpu(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, rotary: Tensor | None = None
) -> Tensor:
    return kernels.attend(q, k, v, sequences.cu_seqlens, rotary)


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    if FLASH.is_as_expected:
        return FLASH(q, k, v, cu_seqlens, max_seqlen)
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.10 has no `scale`; its default is 1/√head_dim in every version.
    return cast(Tensor, varlen_attn(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen))


def _memory_efficient(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    for_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    batch = (q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0))
    attended = EFFICIENT(*batch, cu_seqlens, max_seqlen, compute_log_sumexp=for_gradients)
    return attended.squeeze(0)


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)


def _fa3(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    from fa3_fwd_interface import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)


def _in_calls(
    kernel: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, sequences: Sequences
) -> Tensor:
    """Return what `kernel` gives of a pack, called as often as its sequences need."""
    cu_seqlens, max_seqlen, _ = sequences
    if len(cu_seqlens) - 1 <= MOST_SEQUENCES:
        return kernel(q, k, v, cu_seqlens, max_seqlen)
    lengths = _lengths(sequences, len(q))
    firsts = range(0, len(lengths), MOST_SEQUENCES)
    tokens = [sum(lengths[first : first + MOST_SEQUENCES]) for first in firsts]
    attended = []
    for first, *qkv in zip(firsts, *(x.split(tokens) for x in (q, k, v)), strict=True):
        begins = cu_seqlens[first : first + MOST_SEQUENCES + 1]
        attended.append(kernel(*qkv, begins - begins[0], max_seqlen))
    return torch.cat(attended)


def _lengths(sequences: Sequences, tokens: int) -> Sequence[int]:
    """Return the lengths of the sequences of a pack of `tokens`; unless given, wait for them."""
    lengths = sequences.lengths
    if lengths is None:
        lengths = sequences.cu_seqlens.diff().tolist()
    if sum(lengths) != tokens:
        raise ValueError(f"lengths add up to {sum(lengths)}, but there are {tokens} tokens")
    return lengths


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "sdpa": _sdpa,
    "varlen_cpu": _varlen_cpu,
    "torch_varlen": partial(_in_calls, _torch_varlen),
    "memory_efficient": partial(_in_calls, _memory_efficient),
    "flash_attn": partial(_in_calls, _flash_attn),
    "fa3": partial(_in_calls, _fa3),
}

WITH_ROTARY = {"varlen_cpu"}  # can do the rotary embedding of q and k on the way

# Fastest first. torch's own kernel before flash_attn's: both are FlashAttention-2, and torch's
# was built with the torch that is running. memory_efficient for what those cannot: float32, and
# GPUs before Ampere.
PREFERENCE = {
    "cuda": ("fa3", "torch_varlen", "flash_attn", "memory_efficient", "sdpa"),
    "cpu": ("varlen_cpu", "sdpa"),
}


def unavailable_reason(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """Return why `name` cannot be used, or None."""
    if name == "sdpa":
        return None
    if name == "varlen_cpu":
        return kernels.unavailable_reason(device, dtype, head_dim)
    if name not in attention_needs.GPU:
        return f"it is unknown, known are {', '.join(BACKENDS)}"
    return attention_needs.GPU[name].unmet(device, dtype, head_dim)
