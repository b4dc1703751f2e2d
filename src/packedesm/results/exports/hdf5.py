"""HDF5 files on disks that may become full."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Disk(io.FileIO):
    """What HDF5 writes through: it is never told that a write failed.

    HDF5 keeps what it could not write, tries again when its objects are given back, and then ends
    the process (seen with 2.0: a file of a few kilobytes on a full disk). So the first failure is
    kept for `expect_room`, and what follows is written nowhere.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._failed: OSError | None = None

    def expect_room(self) -> None:
        """Raise the OSError of the first write that failed, if one did."""
        if self._failed is not None:
            raise self._failed

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing once a write has failed."""
        view = memoryview(data).cast("B")
        left = view
        while left and self._failed is None:
            try:
                left = left[super().write(left) :]
            except OSError as error:
                self._failed = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file, or do nothing once a write has failed."""
        try:
            return self.tell() if self._failed else super().truncate(size)
        except OSError as error:
            self._failed = error
            return self.tell()

    def readinto(self, buffer: Any) -> int:
        """Read so much; what was written nowhere is zeros."""
        count = super().readinto(buffer) or 0
        rest = memoryview(buffer).cast("B")[count:]
        if self._failed is not None and rest:
            rest[:] = bytes(len(rest))
        return count + len(rest) * bool(self._failed)


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[Any, Disk]]:
    """Make a new HDF5 file; yield it and what tells now and then whether the disk is full.

    Raises
    ------
    OSError
        At the latest at the end of the block, if something could not be written.
    """
    import h5py

    with Disk(path) as disk:
        try:
            # The format of 1.8, of 2008. Before it the names of a group lay in one piece; once that
            # is larger than HDF5's cache, at 700,000 names, each new one writes all of it again.
            with h5py.File(disk, "w", libver=("v108", "v108")) as file:
                yield file, disk
        finally:
            disk.expect_room()  # whatever HDF5 made of it
