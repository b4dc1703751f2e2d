"""Kernels of our own for what torch is slow at on a CPU: `kernels.cpp`.

They were compiled when packedesm was installed, once for AVX-512 and once for AVX2.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from packedesm.esm2.compiled import load_compiled

# By torch's name of what the CPU can do.
_LIBRARIES = {"AVX512": "packedesm.esm2._kernels_avx512", "AVX2": "packedesm.esm2._kernels_avx2"}
_SOURCE = Path(__file__).with_suffix(".cpp")
_ATTEND: list[Any] = [
    c_int,  # head_dim
    *[c_void_p] * 3,  # q, k, v
    *[c_int64] * 3,  # numbers from row to row of each
    *(c_void_p, c_void_p, c_int, c_int),  # rotary, cu_seqlens, sequences, heads
    *(c_void_p, c_int),  # out, threads
]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rotary: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(q kᵀ / √head_dim) v of each sequence; see `packedesm.esm2.attention`.

    Sums are float32; in bfloat16, rotated q and k and weights are rounded.

    Parameters
    ----------
    rotary
        complex64 (total_tokens, 1, 1, head_dim / 2): each pair of neighbours in q and k is
        rotated by its token's phase first.

    Raises
    ------
    ValueError
        If q, k, v and rotary do not match, `cu_seqlens` are not the bounds of sequences in a pack
        of this many tokens, or a gradient is asked for: there is none.
    """
    tokens, heads, head_dim = q.shape
    if {(x.shape, x.dtype, x.device) for x in (k, v)} != {(q.shape, q.dtype, q.device)}:
        raise ValueError("q, k and v differ in shape, dtype or device")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("varlen_cpu has no gradients; use sdpa")
    bounds = cu_seqlens.contiguous()
    if bounds.dtype != torch.int32 or bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(f"cu_seqlens must be int32 from 0 to the {tokens} tokens of the pack")
    if bool((bounds.diff() < 0).any()):
        raise ValueError("cu_seqlens must not fall")
    if rotary is not None:
        if rotary.shape != (tokens, 1, 1, head_dim // 2) or rotary.dtype != torch.complex64:
            raise ValueError(f"rotary must be complex64 ({tokens}, 1, 1, {head_dim // 2})")
        rotary = rotary.contiguous()
    q, k, v = (_heads_adjoin(x) for x in (q, k, v))
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype)
    _attend(_library(), q.dtype)(
        head_dim,
        *(x.data_ptr() for x in (q, k, v)),
        *(x.stride(0) for x in (q, k, v)),
        *(None if rotary is None else rotary.data_ptr(), bounds.data_ptr()),
        *(len(bounds) - 1, heads),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    return out


def unavailable_reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why `attend` cannot be used, or None."""
    if device.type != "cpu":
        return "it runs on a CPU"
    if torch.backends.cpu.get_cpu_capability() not in _LIBRARIES:
        return "it needs a CPU with AVX-512 or AVX2"
    library = _library()
    if library is None:
        return "it was not compiled when packedesm was installed, or from other sources; run make"
    function = _attend(library, dtype)
    if function is None:
        known = "float32 and bfloat16" if library.has_bfloat16() else "float32"
        return f"on this CPU it computes in {known}, not {str(dtype).removeprefix('torch.')}"
    if function(head_dim, *[None] * 3, *[0] * 3, None, None, 0, 0, None, 1):  # of an empty pack
        return f"it has no kernel for heads of {head_dim} numbers"
    return None


def float_dtype(head_dim: int) -> torch.dtype:
    """Return the faster dtype on this CPU: bfloat16 where there is attention for that."""
    half = unavailable_reason(torch.device("cpu"), torch.bfloat16, head_dim) is None
    return torch.bfloat16 if half else torch.float32


def source_digest() -> str:
    """Return the digest of the source of the kernels that are used here; nothing if none are."""
    library = _library()
    return "" if library is None else library.source_digest().decode()


@cache
def _library() -> ctypes.CDLL | None:
    """Return the library that was compiled for this CPU, None if none was from these sources."""
    name = _LIBRARIES.get(torch.backends.cpu.get_cpu_capability())
    library = load_compiled(name, _SOURCE) if name else None
    if library is None:
        return None
    library.attend_float32.argtypes = _ATTEND
    if library.has_bfloat16():
        library.attend_bfloat16.argtypes = _ATTEND
    return library


def _attend(library: Any, dtype: torch.dtype) -> Any:
    """Return the function for `dtype`, or None; it gives 1 for a head_dim that it does not know."""
    if dtype == torch.float32:
        return library.attend_float32
    if dtype == torch.bfloat16 and library.has_bfloat16():
        return library.attend_bfloat16
    return None


def _heads_adjoin(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (T, H, Dh), copied unless the numbers of each token adjoin."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
