"""HDF5 files that are written with h5py, and what a full disk does to them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import h5py


@contextmanager
def created(path: Path) -> Iterator[h5py.File]:
    """Yield a new HDF5 file to write to; OSError, as the system said it, if it takes no more.

    The HDF5 library cannot close a file that the disk has no room for: h5py raises a RuntimeError,
    and the process ends in a segmentation fault (h5py 3.16, HDF5 2.0). So the library writes
    through a file of Python's, which keeps the first error to itself until the library is done.
    """
    import h5py

    with _Kept(path) as kept:
        try:
            with h5py.File(kept, "w") as file:
                yield file
        except Exception:
            kept.tell_error()  # whatever the library said because of it
            raise
        kept.tell_error()


class _Kept(io.RawIOBase):
    """A new file that seems to take all that is written to it, and tells of its error later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None

    def close(self) -> None:
        self._file.close()
        super().close()

    def tell_error(self) -> None:
        """Raise the error that writing met, if any."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self._error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._error = error
        return size

    def readinto(self, buffer: Any, /) -> int:
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
