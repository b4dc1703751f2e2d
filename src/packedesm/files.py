"""Write files atomically, and read them checked: whole and as they were written, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from packedesm.errors import Damaged, Fault

if TYPE_CHECKING:
    import numpy as np  # functions import it: who only asks which models there are waits for none

# Only writing fails with these.
_FULL = {
    errno.ENOSPC: "no space is left on the disk; free some and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "a file may not become so large here (ulimit -f); raise that limit and run again",
    errno.EROFS: "the file system is read-only; choose another folder for the results",
}
_FORBIDDEN = {
    errno.EACCES: "may not be written to; change its permissions, or choose another folder",
    errno.EPERM: "may not be written to; change its permissions, or choose another folder",
    errno.ENOTDIR: "part of this path is a file; choose another folder",
    errno.EEXIST: "is a file, or part of this path is one; choose another folder",
    errno.ENAMETOOLONG: "is too long a path; choose a shorter one",
    errno.ELOOP: "is a link to itself; choose another folder",
}


TEMPORARY = ".packedesm-"  # how the names of unfinished files begin, and of no others
RECORD_DIGEST = "record_sha256"  # what a record calls the digest of itself
_MARK = f',\n  "{RECORD_DIGEST}": '.encode()
_BLOCK = 1 << 20  # while a digest is made of one, Python's lock is free for other threads


@contextmanager
def explained(folder: Path, reasons: dict[int, str] = _FULL | _FORBIDDEN) -> Iterator[None]:
    """Turn a full disk, and a folder that cannot be written to, into a `Fault` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno not in reasons:
            raise
        raise Fault(f"{folder}: {reasons[error.errno]}") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    On any exception the temporary file is removed and `path` stays as it was. The folder is made
    if it is missing.

    Raises
    ------
    Fault
        If the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    with explained(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A short prefix: the file's own name may already be as long as the file system allows.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=TEMPORARY, suffix=path.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with explained(
            path.parent, _FULL
        ):  # what the block may not read is not this folder's fault
            yield temporary
        with explained(path.parent):
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are shared
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON to `path`, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write what one step tells the next as indented JSON that ends with a digest of itself."""
    content = {key: value for key, value in content.items() if key != RECORD_DIGEST}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_sealed(text.removesuffix("\n}").encode()))


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote, with its digest as `RECORD_DIGEST`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    Damaged
        If it is not as it was written.
    """
    data = Path(path).read_bytes()
    expect(path, data, _sealed(data.rpartition(_MARK)[0]))
    return json.loads(data)


def _sealed(body: bytes) -> bytes:
    return body + _MARK + b'"%b"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def expect(path: Path, found: Any, written: Any) -> None:
    """Raise Damaged, naming the file, unless what was found of it is what was written."""
    if not _same(path, found, written):
        raise damaged(path)


def _same(_path: Path, found: Any, written: Any) -> bool:
    # Of its own, so that a test can leave out the check of one file and see another test fail.
    return bool(found == written)


def damaged(path: Path) -> Damaged:
    """Return what is raised of a file that is not as another step or attempt wrote it."""
    return Damaged(f"{path}: is not as it was written, it is damaged; delete it and run again")


class CheckedFile:
    """A file that is read from front to back, and knows the digest of what was read of it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._position = 0
        self._handle = self.path.open("rb")
        self._size = os.fstat(self._handle.fileno()).st_size
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._handle.close()

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, or what is left."""
        data = self._handle.read(size)
        self._hash.update(data)
        self._position += len(data)
        return data

    def array(self) -> np.ndarray:
        """Read the array of a ``.npy`` file; Damaged if it is none."""
        return self.values(*self.array_header())

    def array_header(self) -> tuple[tuple[int, ...], np.dtype]:
        """Read the beginning of a ``.npy`` file; return the shape and dtype of the array."""
        import numpy as np

        with self._as_written():
            read = np.lib.format.read_array_header_1_0
            if np.lib.format.read_magic(self) != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _fortran, dtype = read(self)
            return shape, dtype

    def values(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Read so many values, in C order, to look at only; Damaged if the file has fewer."""
        import numpy as np

        with self._as_written():
            size = math.prod(shape) * dtype.itemsize
            if not 0 <= size <= self._size - self._position:
                raise ValueError(f"{size} bytes shall follow")
            return np.frombuffer(self.read(size), dtype).reshape(shape)

    def finish(self, sha256: str, size: int = sys.maxsize) -> None:
        """Read what is left; Damaged unless the first `size` bytes, or all, have this digest."""
        while self.read(min(_BLOCK, size - self._position)):
            pass
        expect(self.path, self._hash.hexdigest(), sha256)

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        try:
            yield
        except (OSError, MemoryError):  # nothing is read, and nothing made, beyond the file's end
            raise
        except Exception as error:  # a damaged header can make numpy fail in nearly any way
            raise damaged(self.path) from error


@contextmanager
def reading(*paths: Path, sha256: str) -> Iterator[None]:
    """Let the block read files that another step wrote, and check them meanwhile.

    Their digest is made beside the block and compared at its end, so nothing that the block makes
    of them may be published before. Of files that are damaged this is what is said, whatever they
    made the block fail with.

    Parameters
    ----------
    paths, sha256
        The files, and `combined` of the digests of their bytes.

    Raises
    ------
    Damaged
        If they are not as they were written, are gone, or changed while the block ran.
    """
    stop = threading.Event()

    def digest(path: Path) -> str:
        running = hashlib.sha256()
        with Path(path).open("rb") as handle:
            while not stop.is_set() and (block := handle.read(_BLOCK)):
                running.update(block)
        return running.hexdigest()

    def check() -> None:
        with _there():
            expect(paths[0], combined([*found]), sha256)
            now = identities(paths)
        if now != before:
            raise Damaged(f"{paths[0]}: changed while it was read; run again")

    with _there():
        before = identities(paths)
    with ThreadPoolExecutor(1) as thread:
        found = thread.map(digest, paths)
        try:
            yield
        except Exception:
            check()
            raise
        except BaseException:  # this process is to stop
            stop.set()
            raise
        check()


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `columns` of `rows` under their names; what is None becomes an empty cell."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[column]) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def create_npy(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Create a ``.npy`` file of `shape` and return it as a writable memory map."""
    import numpy as np

    # open_memmap writes an unreadable header when a dimension is a numpy integer.
    shape = tuple(int(size) for size in shape)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Writing to a mapped hole on a full disk kills the process; this raises instead.
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


def combined(digests: Sequence[str]) -> str:
    """Return one SHA-256 for those of several files in their order; of one file its own."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def digests(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Return hexadecimal digests of a file's bytes, which are read once."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    with Path(path).open("rb") as handle:
        while block := handle.read(_BLOCK):
            for running in hashes.values():
                running.update(block)
    return {algorithm: running.hexdigest() for algorithm, running in hashes.items()}


def identities(paths: Iterable[Path]) -> list[tuple[int, int, int]]:
    """Return what is another for files that were replaced or written to: inode, size and time."""
    found = [Path(path).stat() for path in paths]
    return [(entry.st_ino, entry.st_size, entry.st_mtime_ns) for entry in found]


def remove_folder(folder: Path) -> None:
    """Remove a folder, in one step for whoever looks at it or still writes into it."""
    grave = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    folder.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def fsync(path: Path) -> None:
    """Wait until what was written to a file, or renamed in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise Damaged(f"{error.filename}: is gone; run again") from None


def _umask() -> int:
    # The mask can only be read by setting it; 0o077 meanwhile keeps a race harmless.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
