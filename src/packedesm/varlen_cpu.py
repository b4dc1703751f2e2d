"""Attention within each protein of a pack on a CPU, by a kernel of our own: `varlen_cpu.cpp`.

It was compiled when packedesm was installed, once for AVX-512 and once for AVX2.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache

import torch

# By torch's name of what the CPU can do.
_LIBRARIES = {"AVX512": "packedesm._varlen_avx512", "AVX2": "packedesm._varlen_avx2"}
_ROWS = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3  # q, k, v; numbers between their rows
_PACK = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]  # cu_seqlens, sequences, heads
_ARGUMENTS = [
    ctypes.c_int,
    *_ROWS,
    *_PACK,
    ctypes.c_void_p,
    ctypes.c_int,
]  # head_dim … out, threads


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor
) -> torch.Tensor:
    """Return softmax(q kᵀ / √head_dim) v of each sequence; see `packedesm.attention`.

    Scores, weights' sums and the sum of values are float32; in bfloat16 the weights are rounded.

    Raises
    ------
    ValueError
        If `cu_seqlens` are not the bounds of sequences in a pack of this many tokens, or a
        gradient is asked for: there is none.
    """
    tokens, heads, head_dim = q.shape
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("varlen_cpu has no gradients; use sdpa")
    bounds = cu_seqlens.contiguous()
    if bounds.dtype != torch.int32 or bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(f"cu_seqlens must be int32 from 0 to the {tokens} tokens of the pack")
    if bool((bounds.diff() < 0).any()):
        raise ValueError("cu_seqlens must not fall")
    q, k, v = (_heads_adjoin(x) for x in (q, k, v))
    out = torch.empty(tokens, heads, head_dim, dtype=q.dtype)
    _function(q.dtype)(
        head_dim,
        *(x.data_ptr() for x in (q, k, v)),
        *(x.stride(0) for x in (q, k, v)),
        *(bounds.data_ptr(), len(bounds) - 1, heads),
        *(out.data_ptr(), torch.get_num_threads()),
    )
    return out


def obstacle(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the kernel cannot be used, or None."""
    if device.type != "cpu":
        return "it runs on a CPU"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in _LIBRARIES:
        return "it needs a CPU with AVX-512 or AVX2"
    if importlib.util.find_spec(_LIBRARIES[capability]) is None:
        return "it was not compiled: packedesm was installed without a C++ compiler"
    function = _function(dtype)
    if function is None:
        has = "float32 and bfloat16" if _function(torch.bfloat16) else "float32"
        return f"on this CPU it computes in {has}, not {str(dtype).removeprefix('torch.')}"
    if function(head_dim, *[None] * 3, *[0] * 3, None, 0, 0, None, 1):  # of an empty pack
        return f"it has no kernel for heads of {head_dim} numbers"
    return None


@cache
def _function(dtype: torch.dtype) -> Callable[..., int] | None:
    """Return the compiled function for `dtype` and this CPU; it gives 1 for an unknown head_dim."""
    name = _LIBRARIES[torch.backends.cpu.get_cpu_capability()]
    library = ctypes.CDLL(importlib.util.find_spec(name).origin)
    if dtype == torch.float32:
        function = library.attend_float32
    elif dtype == torch.bfloat16 and library.has_bfloat16():
        function = library.attend_bfloat16
    else:
        return None
    function.argtypes = _ARGUMENTS
    return function


def _heads_adjoin(x: torch.Tensor) -> torch.Tensor:
    """Return `x` (T, H, Dh), copied unless the numbers of each token adjoin."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
