"""How long a process takes until it can work."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STARTED = 19  # of the fields behind the name in /proc's stat: clock ticks after the boot


def seconds_since_start() -> float:
    """Return how long this process is there; where the system does not tell, its CPU time."""
    try:
        told = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        ticks = int(told.rpartition(")")[2].split()[_STARTED])
        started = ticks / os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.process_time()


# Until this module is there, which comes after the large libraries.
_SECONDS = [seconds_since_start()]


def taken_to_start() -> float:
    """Return what Python and its libraries took; at further calls 0, for a process starts once."""
    return _SECONDS.pop() if _SECONDS else 0.0
