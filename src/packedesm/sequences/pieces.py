r"""The text of a FASTA file in pieces that end where a record ends, in bounded memory.

Bytes stream through three steps: decompress, unify line ends, cut before the last ``\n>``.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from packedesm.errors import UserError, quote, quote_path
from packedesm.paths import STANDARD_INPUT, named
from packedesm.sequences import containers

MAX_RECORD_BYTES = 100_000_000
"""The longest record, its header and line ends included: no protein comes near."""

BLANKS = b" \t"

_MAX_BLANK_BYTES = 1 << 20  # before the first record
_BUFFER = 1 << 17  # bytes of the file as it lies on disk
_GZIP = b"\x1f\x8b"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_UTF8_MARK = b"\xef\xbb\xbf"
_LONGEST_MARK = 4  # bytes: of UTF-32
_LINE_END = re.compile(rb"\r*\n|\r")
# Looking back keeps a long run of CRs from being tried again from each of its bytes.
_CRS_BEFORE_LF = re.compile(rb"(?<!\r)\r+\n")
_SWAP_LINE_ENDS = bytes.maketrans(b"\r\n", b"\n\r")


class RecordTooLongError(Exception):
    """The record after the pieces so far has more than `MAX_RECORD_BYTES`."""


def read_pieces(
    path: Path, block_size: int, on_read: Callable[[memoryview], object]
) -> Iterator[bytes]:
    r"""Yield the text of a file, whose lines end with ``\n``, about `block_size` bytes at a time.

    Each piece begins with a header, the first one after blank lines, and ends where a record ends.
    `on_read` is given the bytes of the file, as they lie on disk, when they have been read.

    Raises
    ------
    UserError
        The file cannot be read, is truncated, or does not begin as FASTA does.
    RecordTooLongError
        A record does not end.
    """
    text = _unify_line_ends(_read_chunks(path, block_size, on_read))
    return _whole_records(_expect_fasta(named(path), text), block_size)


class _Watched(io.RawIOBase):
    """A file whose reader is watched."""

    def __init__(self, path: Path, on_read: Callable[[memoryview], object]) -> None:
        self.last = b""  # bytes that were read, as many as end a bgzip file
        self._file = _opened(path)
        self._on_read = on_read
        self._ended = False  # once for all: a terminal could go on

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        free = buffer = memoryview(buffer)
        # A pipe may bring its first bytes one by one, and they say what the file is.
        while free and not self._ended:
            count = self._file.readinto(free) or 0
            self._ended = not count
            free = free[count:]
        count = len(buffer) - len(free)
        found = buffer[:count]
        self._on_read(found)
        self.last = (self.last + bytes(found[-len(_BGZF_END) :]))[-len(_BGZF_END) :]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(path: Path) -> io.FileIO:
    if path != STANDARD_INPUT:
        return io.FileIO(path)
    # By its number: no name opens a socket, or the pipe of another user.
    file = io.FileIO(0, closefd=False)
    if stat.S_ISREG(os.fstat(0).st_mode):
        file.seek(0)  # it may be read again
    return file


def _read_chunks(
    path: Path, block_size: int, on_read: Callable[[memoryview], object]
) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, without a UTF-8 byte-order mark."""
    try:
        watched, path = _Watched(path, on_read), named(path)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{quote_path(path)}: cannot be read ({reason}); give the path of a readable FASTA file"
        ) from error
    with io.BufferedReader(watched, _BUFFER) as raw:
        magic = raw.peek(16)[:16]
        handle = gzip.GzipFile(fileobj=raw) if magic.startswith(_GZIP) else raw
        try:
            first = handle.read(max(block_size, _LONGEST_MARK))
            if name := containers.encoding(first):
                raise UserError(f"{path}: is {name} text; save it as UTF-8 or plain text")
            rest = iter(lambda: handle.read(block_size), b"")
            yield from chain([first.removeprefix(_UTF8_MARK)], rest)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: truncated or corrupt gzip data ({error}); fetch or compress it again"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: reading failed ({error.strerror}); fetch it again") from error
        bgzip = magic.startswith(_GZIP) and magic[3:4] == b"\x04" and magic[12:14] == b"BC"
        # A bgzip file is many gzip members: cut between two of them, it decompresses cleanly.
        if bgzip and watched.last != _BGZF_END:
            raise UserError(
                f"{path}: truncated bgzip data (its end marker is missing); "
                "fetch or compress it again"
            )


def _unify_line_ends(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield the chunks with ``\n`` as the only line end.

    The first line end decides: after ``\r`` alone the file ends its lines with CR. A ``\r`` that
    is left over in the result then belongs to no line end, and parsing refuses it.
    """
    held: list[bytes] = []
    held_bytes = 0
    cr_only = None
    for chunk in chunks:
        text = chunk.rstrip(b"\r")
        if not text:
            held.append(chunk)  # what follows a CR decides its meaning
            held_bytes += len(chunk)
            if held_bytes > MAX_RECORD_BYTES:
                raise RecordTooLongError
            continue
        held, text = [chunk[len(text) :]], b"".join([*held, text])
        held_bytes = len(held[0])
        if cr_only is None and (first := _LINE_END.search(text)):
            cr_only = first.group() == b"\r"
        if cr_only:
            text = text.translate(_SWAP_LINE_ENDS)
        elif b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            if b"\r" in text:
                text = _CRS_BEFORE_LF.sub(b"\n", text)
        yield text


def _expect_fasta(path: Path, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the chunks; UserError before the first of them if they do not begin as FASTA does."""
    chunks, begun = iter(chunks), b""
    for chunk in chunks:
        begun += chunk
        if text := begun.lstrip(BLANKS + b"\n"):
            blank = begun[: len(begun) - len(text)]
            first = begun[blank.rfind(b"\n") + 1 :]
            if not first.startswith(b">"):
                line = blank.count(b"\n") + 1
                raise UserError(f"{path}: {_what_it_is(first, line)}")
            yield begun
            break
        if len(begun) > _MAX_BLANK_BYTES:
            raise UserError(f"{path}: is not FASTA: it begins with a megabyte of blanks")
    yield from chunks


def _what_it_is(start: bytes, line: int) -> str:
    """Say what is no FASTA, from its first line that is not blank on, and what to do."""
    if said := containers.binary(start):
        return f"is {said}"
    shown = quote(start[:200].partition(b"\n")[0].decode(errors="replace"), 40)
    said = f"is not FASTA: line {line} begins with {shown} where the first '>' should be"
    return "; ".join(filter(None, [said, containers.text(start)]))


def _whole_records(chunks: Iterable[bytes], block_size: int) -> Iterator[bytes]:
    r"""Yield pieces that end where a record ends, cut before the last ``\n>`` of each chunk."""
    pending: list[bytes] = []  # the beginning of the last record seen
    pending_bytes = 0
    for chunk in chunks:
        # A long record alone: what is done to all records at once would copy it once more.
        alone = pending_bytes > block_size
        while cut := (chunk.find if alone else chunk.rfind)(b"\n>") + 1:
            pending.append(chunk[:cut])
            yield _joined(pending)
            chunk, pending_bytes, alone = chunk[cut:], 0, False
        pending.append(chunk)
        pending_bytes += len(chunk)
        if pending_bytes > MAX_RECORD_BYTES:
            raise RecordTooLongError
    if pending_bytes:
        yield _joined(pending)


def _joined(parts: list[bytes]) -> bytes:
    """Join the parts and empty the list: nothing is to be held twice while it is used."""
    joined = b"".join(parts)
    parts.clear()
    return joined
