"""The time that work on a device takes."""

from __future__ import annotations

import time
from collections.abc import Callable

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
