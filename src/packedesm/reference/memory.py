"""Whether memory holds what fair-esm needs, for several passes at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from threading import Condition

from packedesm.device.memory import give_back_freed_memory


class DoesNotFitError(Exception):
    """The memory of this machine does not hold the reference of a protein."""


class Memory:
    """What passes hold that threads make side by side: the system would rather kill than refuse."""

    def __init__(self) -> None:
        self._change = Condition()
        self._held = 0.0

    @contextmanager
    def holding(self, size: float) -> Iterator[None]:
        """Let the block take so many bytes, once there is room for them beside all others'.

        Raises
        ------
        DoesNotFitError
            If they do not fit alone.
        """
        with self._change:
            self._change.wait_for(lambda: not self._held or self._fits(size))
            if not self._fits(size):
                raise DoesNotFitError
            self._held += size
        try:
            yield
        finally:
            with self._change:
                self._held -= size
                self._change.notify_all()

    def _fits(self, size: float) -> bool:
        # What the others have taken already is counted twice: they may take it all now.
        if self._held + size <= available_bytes():
            return True
        give_back_freed_memory()
        return self._held + size <= available_bytes()


def available_bytes() -> float:
    """Return the memory that this process may still take; infinity where Linux does not tell."""
    found = [inf]
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):  # of its control group (v2) and those around it
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::/")[2]
        for part in [Path(group), *Path(group).parents]:
            folder = Path("/sys/fs/cgroup") / part
            with suppress(OSError, ValueError):  # "max", or the root
                limit = int((folder / "memory.max").read_text())
                found.append(limit - int((folder / "memory.current").read_text()))
    return min(found)
