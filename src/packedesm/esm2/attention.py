"""Attention within each protein of a pack: one function, several backends, chosen once."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from packedesm.errors import UserError
from packedesm.esm2 import kernels

HALF = (torch.float16, torch.bfloat16)
FA3_HEAD_DIMS = (64, 96, 128, 192, 256)


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
        With `lengths`, ``sdpa`` need not copy `cu_seqlens` from the device, which waits for it; no
        other backend reads them.
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
    lengths = sequences.lengths
    if lengths is None:
        lengths = sequences.cu_seqlens.diff().tolist()
    if sum(lengths) != len(q):
        raise ValueError(f"lengths add up to {sum(lengths)}, but there are {len(q)} tokens")
    # Neighbours of one length share a call; each part is one run of such neighbours.
    runs = [(length, sum(1 for _ in group)) for length, group in groupby(lengths)]
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


def _torch_varlen(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.10 has no `scale`; its default is 1/√head_dim in every version.
    return cast(Tensor, varlen_attn(q, k, v, *_both_sides(sequences)))


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, *_both_sides(sequences))


def _fa3(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    from fa3_fwd_interface import flash_attn_varlen_func

    return flash_attn_varlen_func(q, k, v, *_both_sides(sequences))


def _both_sides(sequences: Sequences) -> tuple[Tensor, Tensor, int, int]:
    """Return where the sequences of the queries and of the keys stand: the same."""
    cu_seqlens, max_seqlen, _ = sequences
    return cu_seqlens, cu_seqlens, max_seqlen, max_seqlen


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "sdpa": _sdpa,
    "varlen_cpu": _varlen_cpu,
    "torch_varlen": _torch_varlen,
    "flash_attn": _flash_attn,
    "fa3": _fa3,
}

WITH_ROTARY = {"varlen_cpu"}  # can do the rotary embedding of q and k on the way

# Fastest first. torch's own kernel before flash_attn's: both are FlashAttention-2, and torch's
# was built with the torch that is running.
PREFERENCE = {
    "cuda": ("fa3", "torch_varlen", "flash_attn", "sdpa"),
    "cpu": ("varlen_cpu", "sdpa"),
}


class _Needs(NamedTuple):
    module: str  # that holds the function
    function: str
    install: str  # what to tell a user who lacks it
    capability: tuple[int, int]  # smallest CUDA compute capability
    generations: tuple[int, ...] | None  # major capabilities that are supported; None is all
    dtypes: tuple[torch.dtype, ...]
    head_dims: Callable[[int], bool]


_NEEDS = {
    "torch_varlen": _Needs(
        module="torch.nn.attention.varlen",
        function="varlen_attn",
        install="install torch 2.10 or newer",
        capability=(8, 0),
        generations=None,
        dtypes=HALF,
        head_dims=lambda head_dim: head_dim % 8 == 0 and head_dim <= 256,
    ),
    "flash_attn": _Needs(
        module="flash_attn",
        function="flash_attn_varlen_func",
        install="pip install 'packedesm[flash]'",
        capability=(8, 0),
        generations=None,
        dtypes=HALF,
        head_dims=lambda head_dim: head_dim % 8 == 0 and head_dim <= 256,
    ),
    "fa3": _Needs(
        module="fa3_fwd_interface",
        function="flash_attn_varlen_func",
        install="pip install fa3-fwd",
        capability=(9, 0),
        generations=(9,),  # FlashAttention-3 is written for Hopper alone
        dtypes=(torch.bfloat16,),
        head_dims=FA3_HEAD_DIMS.__contains__,
    ),
}


def unavailable_reason(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int
) -> str | None:
    """Return why `name` cannot be used, or None."""
    if name == "sdpa":
        return None
    if name == "varlen_cpu":
        return kernels.unavailable_reason(device, dtype, head_dim)
    if name not in _NEEDS:
        return f"it is unknown, known are {', '.join(BACKENDS)}"
    needs = _NEEDS[name]
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, not a {device.type.upper()}"
    if dtype not in needs.dtypes:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in needs.dtypes)
        return f"it computes in {names}, not {str(dtype).removeprefix('torch.')}"
    if not needs.head_dims(head_dim):
        return f"it has no kernel for heads of {head_dim} numbers"
    capability = torch.cuda.get_device_capability(device)
    if capability < needs.capability or (
        needs.generations and capability[0] not in needs.generations
    ):
        found = ".".join(map(str, capability))
        return f"it does not run on a GPU of compute capability {found}"
    if not _installed(needs):
        return f"{needs.module} is not installed; {needs.install}"
    return None


def _installed(needs: _Needs) -> bool:
    """Tell whether a backend is there; one that is there and broken raises UserError."""
    root = importlib.util.find_spec(needs.module.partition(".")[0])
    # Without an __init__.py it is a namespace folder that another distribution
    # (flash_attn.cute) left behind, not the library.
    if root is None or root.origin is None or importlib.util.find_spec(needs.module) is None:
        return False
    try:
        getattr(importlib.import_module(needs.module), needs.function)
    except (ImportError, AttributeError, OSError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"attention: {needs.module} is installed but does not work ({cause}); "
            "repair or remove it, or choose attention sdpa"
        ) from error
    return True
