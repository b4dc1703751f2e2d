"""Write files atomically: a reader sees the whole new file, or what was there before."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import Fault

# Only writing fails with these.
_FULL = {
    errno.ENOSPC: "no space is left on the disk; free some and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EROFS: "the file system is read-only; choose another folder for the results",
}
_FORBIDDEN = {
    errno.EACCES: "may not be written to; change its permissions, or choose another folder",
    errno.EPERM: "may not be written to; change its permissions, or choose another folder",
    errno.ENOTDIR: "part of this path is a file; choose another folder",
}


TEMPORARY = ".tmp-"  # how the names of unfinished files begin
_BLOCK = 1 << 16


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


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `columns` of `rows` under their names; what is None becomes an empty cell."""
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row[column]) for column in columns) for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def create_npy(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Create a ``.npy`` file of `shape` and return it as a writable memory map."""
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


def digests(paths: Iterable[Path], algorithms: Iterable[str]) -> dict[str, str]:
    """Return hexadecimal digests of the files' bytes, one file after the other, read once."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    for path in paths:
        with Path(path).open("rb") as handle:
            while block := handle.read(_BLOCK):
                for running in hashes.values():
                    running.update(block)
    return {algorithm: running.hexdigest() for algorithm, running in hashes.items()}


def fsync(path: Path) -> None:
    """Wait until what was written to a file, or renamed in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    # The mask can only be read by setting it; 0o077 meanwhile keeps a race harmless.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
