"""Finished packs in files that show themselves whether they are whole and where they belong."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from packedesm.embedding.pack import FinishedPack, PackStatistics
from packedesm.files import TEMPORARY, CheckedFile, damaged, expect, explained, fsync
from packedesm.paths import COMMIT_SUFFIX

_DIGEST = hashlib.sha256
_TAIL = 8 + _DIGEST().digest_size  # the length of the description, and the digest


class CommitWriter:
    """Write packs to a file as they finish, and commit it every so often.

    A commit is a file: pack after pack, the arrays of a `FinishedPack` (``rows``, ``residues``,
    ``deferred`` and those that its vectors are) in numpy's format; then a description in JSON,
    which names them, its length, and the SHA-256 of everything before. Packs are written at once,
    so that no more than one is held in memory and a commit has little left to flush.

    Parameters
    ----------
    folder
        Where commits are kept.
    description
        What stands in every commit: its fingerprint and its attempt.
    may_commit
        Called before a commit; raises if this process is no longer the one that may.
    seconds, packs
        A file is committed when it is this old, or holds this many packs.
    """

    def __init__(
        self,
        folder: Path,
        description: dict[str, Any],
        may_commit: Callable[[], None],
        *,
        seconds: float,
        packs: int,
    ) -> None:
        self.committed: list[Commit] = []
        self._folder = folder
        self._description = description
        self._may_commit = may_commit
        self._seconds = seconds
        self._packs = packs
        self._file: _HashedFile | None = None
        self._statistics: list[PackStatistics] = []
        self._arrays: list[list[str]] = []  # names, of each pack
        self._temporary = folder / f"{TEMPORARY}{description['attempt']}"
        self._begun = time.monotonic()
        self._lock = threading.RLock()  # packs come from one thread, the last commit from another

    def add(self, pack: FinishedPack) -> None:
        """Write one pack, and commit if it is time.

        Raises
        ------
        Fault
            If the disk is full, or another process has taken over; what was added since the last
            commit is thrown away.
        """
        with self._lock:
            with self._abandoned_on_failure():
                self._append(pack)
            old = time.monotonic() - self._begun >= self._seconds
            if old or len(self._statistics) >= self._packs:
                self.commit()

    def _append(self, pack: FinishedPack) -> None:
        if self._file is None:
            self._file = _HashedFile(self._temporary.open("wb"))
            self._begun = time.monotonic()
        for array in (pack.rows, pack.residues, pack.deferred, *pack.vectors.values()):
            np.save(self._file, array, allow_pickle=False)
        self._statistics.append(pack.statistics)
        self._arrays.append(list(pack.vectors))

    def commit(self) -> None:
        """Make what was added since the last commit survive; Fault as `add`."""
        with self._lock:
            if self._file is not None:
                with self._abandoned_on_failure():
                    self._write(self._file)
                self._file, self._statistics, self._arrays = None, [], []

    def _write(self, file: _HashedFile) -> None:
        first, last = self._statistics[0].pack, self._statistics[-1].pack
        name = f"{first:08d}-{last:08d}-{self._description['attempt']}"
        path = self._folder / f"{name}{COMMIT_SUFFIX}"
        packs = [asdict(statistics) for statistics in self._statistics]
        description = self._description | {"arrays": self._arrays}
        text = json.dumps(description | {"packs": packs}).encode()
        file.write(text + len(text).to_bytes(8, "little"))
        content, digest = file.finish()
        self._may_commit()
        self._temporary.replace(path)
        fsync(self._folder)
        self.committed.append(Commit(path, description, self._statistics, content, digest))

    @contextmanager
    def _abandoned_on_failure(self) -> Iterator[None]:
        """Throw away what was not committed if the block fails: it would not be whole."""
        try:
            with explained(self._folder):
                yield
        except BaseException:
            if self._file is not None:
                self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._file, self._statistics, self._arrays = None, [], []
            raise


@dataclass(frozen=True)
class Commit:
    """A commit: what it holds, and the digest of its first `content` bytes."""

    path: Path
    description: dict[str, Any]
    statistics: list[PackStatistics]
    content: int
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Commit:
        """Check a commit against its digest and return it; Damaged if it is not whole."""
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            content = max(0, size - _DIGEST().digest_size)
            digest = _digest(handle, content)
            expect(path, size >= _TAIL and handle.read(), digest)
            handle.seek(size - _TAIL)
            length = int.from_bytes(handle.read(8), "little")
            handle.seek(size - _TAIL - length)
            description = json.loads(handle.read(length))
        try:
            statistics = [PackStatistics(**pack) for pack in description.pop("packs")]
        except TypeError as error:  # whole, but of another version
            raise damaged(path) from error
        return cls(path, description, statistics, content, digest.hex())

    def packs(self, wanted: Container[int]) -> Iterator[FinishedPack]:
        """Yield those packs whose numbers are `wanted`, as they were added.

        Raises
        ------
        Damaged
            After the last pack, or instead of one, if the file is not as it was written.
        """
        with CheckedFile(self.path) as file:
            arrays = self.description["arrays"]
            for statistics, names in zip(self.statistics, arrays, strict=True):
                rows, residues, deferred = (file.array() for _ in range(3))
                vectors = {name: file.array() for name in names}
                if statistics.pack in wanted:
                    yield FinishedPack(statistics, rows, residues, vectors, deferred)
            file.finish(self.sha256, self.content)


class _HashedFile:
    """A file that knows the digest of what was written to it."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._hash = _DIGEST()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._handle.write(data)

    def finish(self) -> tuple[int, str]:
        """Append the digest, wait until everything is on the disk; return size before, and it."""
        content = self._handle.tell()
        self._handle.write(self._hash.digest())
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        return content, self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; what is left in the buffer does not matter any more."""
        with suppress(OSError):
            self._handle.close()


def _digest(handle: BinaryIO, size: int) -> bytes:
    """Return the digest of the next `size` bytes."""
    digest = _DIGEST()
    while size and (block := handle.read(min(size, 1 << 22))):
        digest.update(block)
        size -= len(block)
    return digest.digest()
