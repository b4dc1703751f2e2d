"""The time that work on a device takes, measured so that nothing is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def time_repeats(
    work: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int
) -> list[float]:
    """Return the seconds that each of `repeats` calls of `work` took, after `warm_up` others.

    Each begins when the device is idle and ends when it is idle again.
    """
    seconds = []
    for _ in range(warm_up + repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Let the block compute as packs are computed, on a stream that is not the default one.

    torch keeps freed memory for the stream that it was allocated on, and no other stream gets it:
    `release_memory` is to follow when the block's tensors are gone.
    """
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # on which weights were written
    with torch.cuda.stream(stream):
        yield


def release_memory(device: torch.device) -> None:
    """Give the memory of tensors that are gone back to the device, for other streams."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
