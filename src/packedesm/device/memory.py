"""The memory of tensors: how one sees that it is used up, and how a CPU keeps it."""

from __future__ import annotations

import ctypes
import platform

import torch

# Out of memory has an exception of its own, but not where cuBLAS or the C library runs out.
_OUT_OF_MEMORY = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "can't allocate memory",
)
# From glibc's malloc.h, as mallopt(3) describes them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def out_of_memory(error: Exception) -> bool:
    """Tell whether `error` says that the memory of the device is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where it is glibc.

    It gives blocks above 32 MB back to the system, which hands them out again page by page, zeroed:
    of a forward pass on a CPU that was one part in fifteen (35M geometry, float32).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
