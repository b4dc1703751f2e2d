"""The arrays of all shards as one, read once from front to back and checked meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from packedesm.errors import Fault
from packedesm.files import CheckedFile, damaged


class Parts:
    """Context manager: the rows of one output of the shards, one shard after the other.

    Parameters
    ----------
    files
        The shards' ``.npy`` files in their order, each with the SHA-256 that its job recorded.

    Attributes
    ----------
    rows, line, dtype
        Rows of all parts together, the shape of one and its number format, as the headers say.
    """

    def __init__(self, files: Mapping[Path, str]) -> None:
        self._digests = files
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            files = [opened.enter_context(CheckedFile(path)) for path in self._digests]
            headers = [file.array_header() for file in files]
            for file, (shape, _dtype) in zip(files, headers, strict=True):
                if not shape:
                    raise damaged(file.path)
            self._open = opened.pop_all()
        self._left = [
            (file, shape[0]) for file, (shape, _dtype) in zip(files, headers, strict=True)
        ]
        self._files = files
        self.rows = sum(rows for _file, rows in self._left)
        (_, *line), self.dtype = headers[0]
        self.line = tuple(line)
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        with self._open:
            # Damage can make a reader fail in any way; what else is raised says more by itself.
            if isinstance(error, Exception) and not isinstance(error, (OSError, Fault)):
                self._check()

    def read(self, rows: int) -> np.ndarray:
        """Return the next rows, (rows, *line).

        Raises
        ------
        Damaged
            If a part ends before its last row.
        RuntimeError
            If there are not so many.
        """
        found = [] if rows else [np.empty((0, *self.line), self.dtype)]
        while rows:
            if not self._left:
                raise RuntimeError(f"the shards hold {self.rows} rows, the index says more")
            file, left = self._left[0]
            count = min(rows, left)
            found.append(file.values((count, *self.line), self.dtype))
            rows -= count
            self._left[0] = file, left - count
            if count == left:
                del self._left[0]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def finish(self, output: str) -> None:
        """Check what was read against the digests.

        Raises
        ------
        Damaged
            If a part is not as its job recorded.
        RuntimeError
            If rows are left, of the part that is called `output`.
        """
        self._check()
        if left := sum(rows for _file, rows in self._left):
            raise RuntimeError(
                f"the shards hold {self.rows} rows of {output}, the index says {self.rows - left}"
            )

    def _check(self) -> None:
        for file, sha256 in zip(self._files, self._digests.values(), strict=True):
            file.finish(sha256)
