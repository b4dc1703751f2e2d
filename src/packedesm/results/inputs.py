"""Input files, known again by what they hold: their digests are made once, and kept."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from packedesm.errors import Damaged, UserError
from packedesm.files import file_digest, identities, read_record, write_record
from packedesm.paths import STANDARD_INPUT, named

logger = logging.getLogger(__name__)

MISSING = "missing"  # what `describe` says of a file that is not there
_LARGE = 100_000_000  # bytes; who reads so much says so


@dataclass(frozen=True)
class Input:
    """One input file as it was read.

    Who has the same path, size, times and inode is the same file, and need not be read again to
    know it: no program can set the time of a change (``ctime``) back.
    """

    path: str
    bytes: int
    modified_ns: int
    changed_ns: int
    inode: int
    sha256: str | None  # None of what can be read only once, such as a pipe

    @classmethod
    def of(
        cls, path: Path, known: Mapping[str, Any] | None = None, sha256: str | None = None
    ) -> Input:
        """Return what identifies the file.

        Its digest is `sha256`, or that of `known` if this is of the very file, or is made.
        """
        found = path.stat()
        times = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        here = cls(str(path.absolute()), *times, sha256=None)
        if known is not None and {**known, "sha256": None} == asdict(here):
            return cls(**known)
        if sha256 is None and stat.S_ISREG(found.st_mode):
            sha256 = file_digest(path)
        return cls(here.path, *times, sha256)

    def in_words(self) -> str:
        """Return size and digest."""
        return f"{self.bytes} {self.sha256}"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Input:
        """Return what `dataclasses.asdict` gave; TypeError if it did not give this."""
        found = cls(**content)
        kinds = [type(getattr(found, field.name)).__name__ for field in fields(cls)]
        if kinds[:-1] != ["str", "int", "int", "int", "int"] or kinds[-1] not in (
            "str",
            "NoneType",
        ):
            raise TypeError("an input of other types")
        return found


def check_together(paths: Sequence[Path]) -> None:
    """Raise UserError if a file is given twice, or standard input is closed.

    Whoever sits at a terminal that is to be read is told so. Of a path that leads to no file
    nothing is said here.
    """
    if STANDARD_INPUT in paths and sys.stdin is None:  # something else may have its number
        raise UserError("standard input: is closed; give a FASTA file, or pipe one in")
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        with suppress(OSError, ValueError):
            found = path.stat()
            file = (found.st_dev, found.st_ino)
            if file in seen:
                also = "" if seen[file] == path else f", as {named(seen[file])} too"
                raise UserError(f"{named(path)}: is given twice{also}; give each FASTA file once")
            seen[file] = path
    if STANDARD_INPUT in paths and os.isatty(0):
        logger.warning("standard input is this terminal: paste FASTA, then press Enter and Ctrl-D")


def describe(paths: Sequence[Path], cache: Path) -> list[str]:
    """Return size and SHA-256 of each file in a line, in their order.

    Parameters
    ----------
    paths
        Files; of one that is not there the line says so.
    cache
        Where digests are kept, by which files that were not touched need not be read again.
    """
    try:
        known = read_record(cache)
    except (FileNotFoundError, Damaged):
        known = {}
    found = {str(path): _input(path, known) for path in paths if path.exists()}
    new = {path: asdict(entry) for path, entry in found.items()}
    if not new.items() <= known.items():
        write_record(cache, known | new)
    entries = [found.get(str(path)) for path in paths]
    return [MISSING if entry is None else entry.in_words() for entry in entries]


def digests_of(described: Sequence[str]) -> list[str]:
    """Return the digests in what `describe` or `Input.in_words` said; of a pipe "None"."""
    return [line.split()[-1] for line in described]


def check_read(paths: Sequence[object], known: Sequence[str], read: Sequence[str]) -> None:
    """Raise UserError unless the bytes that were read of each file are those it was known by.

    Parameters
    ----------
    paths
        The files.
    known
        What `describe` said of each before, or `Input.in_words`.
    read
        The SHA-256 of what was read of each.
    """
    for path, before, found in zip(paths, digests_of(known), read, strict=True):
        if before not in (found, str(None)):
            raise UserError(f"{path}: changed while it was read; run again")


@contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Let the block read files that others may write to; UserError at its end if somebody did."""
    before = identities(paths)
    yield
    for path, found in zip(paths, before, strict=True):
        if not path.exists() or identities([path]) != [found]:
            raise UserError(f"{path}: changed while it was read; run again")


def _input(path: Path, known: Mapping[str, Any]) -> Input:
    before = known.get(str(path))
    if before is None and path.stat().st_size > _LARGE:
        logger.warning("%s: is read once, to know it again", path)
    return Input.of(path, before)
