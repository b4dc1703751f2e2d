"""Seconds of several ways to do one thing, in turn, so that a busy moment hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def timed(
    repeats: int, *, after: Callable[[], Any] = lambda: None, **functions: Callable[[], Any]
) -> dict[str, dict[str, float]]:
    """Call every function once in each round; return medians and spread of its seconds.

    `after` is called after each of them, and is not timed.
    """
    wall: dict[str, list[float]] = {name: [] for name in functions}
    cpu: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            wall[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - cpu_start)
            after()
    return {
        name: {
            "seconds": statistics.median(wall[name]),
            "min_seconds": min(wall[name]),
            "max_seconds": max(wall[name]),
            "cpu_seconds": statistics.median(cpu[name]),
        }
        for name in functions
    }
