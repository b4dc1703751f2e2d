"""The memory of tensors: how one sees that it is used up, and how a CPU keeps it."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Out of memory has an exception of its own, but not everywhere. All words of a line in a message,
# and where they come from:
_OUT_OF_MEMORY = (
    # c10/cuda/CUDAException.cpp, whatever call of the CUDA runtime it was
    ("CUDA error: out of memory",),
    # c10/cuda/driver_api.h: expandable segments, and kernels that are loaded when first used
    ("CUDA driver error: out of memory",),
    # aten/src/ATen/cuda/CUDABlas.cpp: a workspace
    ("CUBLAS_STATUS_ALLOC_FAILED",),
    # aten/src/ATen/cuda/CublasHandlePool.cpp: cuBLAS found no room for its handle
    ("CUBLAS_STATUS_NOT_INITIALIZED",),
    # c10/cuda/CUDACachingAllocator.cpp: it ran out and asks NVML, in vain, who takes the memory
    # (https://github.com/pytorch/pytorch/issues/112377)
    ("NVML_SUCCESS ==", "CUDACachingAllocator.cpp"),
    # triton/backends/nvidia/driver.c
    ("Triton Error [CUDA]: out of memory",),
    # c10/core/impl/alloc_cpu.cpp
    ("can't allocate memory",),
)
# From glibc's malloc.h, as mallopt(3) describes them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def out_of_memory(error: Exception) -> bool:
    """Tell whether `error` says that the memory of the device is used up."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        all(word in text for word in words) for words in _OUT_OF_MEMORY
    )


def if_it_fits(call: Callable[[], T]) -> T | None:
    """Return what `call` returns, or None where memory does not suffice.

    By then the exception is gone, whose traceback held tensors.
    """
    try:
        return call()
    except Exception as error:
        if not out_of_memory(error):
            raise
    return None


def page_locked(locked: Callable[[], T], pageable: Callable[[], T]) -> T:
    """Return what `locked` makes in page-locked memory, or else what `pageable` makes.

    Where the system locks no more pages CUDA says "out of memory" too. That it is not the device's
    memory shows in nothing but the call that fails; fewer tokens at once would not help.
    """
    made = if_it_fits(locked)
    if made is None:
        _say_pageable()
        return pageable()
    return made


@cache  # once for a job
def _say_pageable() -> None:
    logger.warning(
        "the system gives no more page-locked memory: copies from the GPU wait for each other"
    )


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, where it is glibc.

    It gives blocks above 32 MB back to the system, which hands them out again page by page, zeroed:
    of a forward pass on a CPU that was one part in fifteen (35M geometry, float32).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Give the system what `keep_freed_memory` has kept: others, and its own count, lack it."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
