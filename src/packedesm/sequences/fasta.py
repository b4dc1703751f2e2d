"""Read FASTA as it really comes: one pass in constant memory that normalises and never guesses.

Bytes stream through four steps: decompress, unify line ends, cut where a record ends, parse.
What cannot be understood without doubt is an error; what is changed is flagged on its record.
"""

import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packedesm.alphabet import GAPS, RESIDUES
from packedesm.errors import UserError, quote, quote_path

FLAGS = ("header_latin1", "upper_cased", "stop_removed", "stop_replaced", "j_replaced")
"""What may be changed in a record on reading, by the name that `Record.flags` carries."""

BLOCK_SIZE = 1 << 20  # decompressed bytes; 8 MiB was a fifth slower, out of the cache

_BUFFER = 1 << 17  # bytes of the file as it lies on disk
_GZIP = b"\x1f\x8b"
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_STARTS = (b"\xff\xfe", b"\xfe\xff", b">\x00", b"\x00>")
_LINE_END = re.compile(rb"\r*\n|\r")
# Looking back keeps a long run of CRs from being tried again from each of its bytes.
_CRS_BEFORE_LF = re.compile(rb"(?<!\r)\r+\n")
_BLANKS = b" \t"
_SWAP_LINE_ENDS = bytes.maketrans(b"\r\n", b"\n\r")
_TO_X = bytes.maketrans(b"*J", b"XX")
_MIXED_LINE_ENDS = "line ends are mixed; convert the file, for example with dos2unix or mac2unix"
_ADVICE = {
    **{bytes([gap]): "remove the gaps of the alignment" for gap in GAPS},
    **{b"%d" % digit: "remove the numbers from the sequence" for digit in range(10)},
    **{bytes([blank]): "remove the blanks inside the sequence" for blank in _BLANKS},
    b">": "begin a header at the start of its line",
    b"\r": _MIXED_LINE_ENDS,
}


class Record(NamedTuple):
    """One FASTA record.

    Attributes
    ----------
    id
        The header up to its first space or tab.
    description
        All of the header after that one space or tab, unchanged.
    sequence
        Upper-case residue letters that ESM-2 knows; may be empty.
    flags
        Names from `FLAGS` for what was changed, in that order.
    """

    id: str
    description: str
    sequence: bytes
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records, each attribute of all of them in one list; iterable as `Record`."""

    ids: list[str]
    descriptions: list[str]
    sequences: list[bytes]
    flags: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return map(Record._make, zip(*self._columns(), strict=True))

    def select(self, wanted: list) -> "Block":
        """Return the records for which `wanted`, one value each, is true."""
        return Block(*(list(compress(column, wanted)) for column in self._columns()))

    def _columns(self) -> tuple[list, ...]:
        return self.ids, self.descriptions, self.sequences, self.flags


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a FASTA file, plain, gzip or bgzip, in constant memory.

    Sequences are upper-cased; one ``*`` at the end is dropped; a ``*`` elsewhere and ``J`` become
    ``X``; each is flagged. Blanks around a line and blank lines carry no data and are dropped.
    Headers that are not UTF-8 are read as Latin-1 and flagged. A record may be empty.

    Raises
    ------
    UserError
        The file cannot be read, is not FASTA, is truncated, or holds a header without an id or a
        character that stands for no residue. Records before the fault may have been yielded.
    """
    return chain.from_iterable(read_blocks(path))


def read_blocks(
    path: Path,
    block_size: int = BLOCK_SIZE,
    on_read: Callable[[memoryview], object] = len,
) -> Iterator[Block]:
    """Yield the same records as `read_records` in blocks, about one per `block_size` bytes.

    `on_read` is given the bytes of the file, as they lie on disk, when they have been read.
    """
    path = Path(path)
    records_before, line, started = 0, 1, False
    for piece in _whole_records(_unify_line_ends(_read_chunks(path, block_size, on_read))):
        if not started:
            blank = _leading_blank_lines(piece)
            line += blank.count(b"\n")
            piece = piece[len(blank) :]
        if piece:
            started = True
            block = _parse(piece, path, records_before, line)
            yield block
            records_before += len(block)
            # bytes.count takes ten times as long for a byte that is this frequent.
            line += int(np.count_nonzero(np.frombuffer(piece, np.uint8) == ord("\n")))
    if not started:
        raise UserError(f"{path}: the file is empty; give a FASTA file with at least one record")


class _Watched(io.RawIOBase):
    """A file whose reader is watched."""

    def __init__(self, path: Path, on_read: Callable[[memoryview], object]) -> None:
        self.last = b""  # bytes that were read, as many as end a bgzip file
        self._file = io.FileIO(path)
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        found = memoryview(buffer)[:count]
        self._on_read(found)
        self.last = (self.last + bytes(found[-len(_BGZF_END) :]))[-len(_BGZF_END) :]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_chunks(
    path: Path, block_size: int, on_read: Callable[[memoryview], object]
) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, without a UTF-8 byte-order mark."""
    try:
        watched = _Watched(path, on_read)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{quote_path(path)}: cannot be read ({reason}); give the path of a readable FASTA file"
        ) from error
    with io.BufferedReader(watched, _BUFFER) as raw:
        magic = raw.peek(16)[:16]
        for start, description in _OTHER_FORMATS.items():
            if magic.startswith(start):
                raise UserError(f"{path}: is {description}; decompress it or compress with gzip")
        handle = gzip.GzipFile(fileobj=raw) if magic.startswith(_GZIP) else raw
        try:
            first = handle.read(max(block_size, len(_UTF8_MARK)))
            if first.startswith(_UTF16_STARTS):
                raise UserError(f"{path}: is UTF-16 text; save it as UTF-8 or plain text")
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
    cr_only = None
    for chunk in chunks:
        text = chunk.rstrip(b"\r")
        if not text:
            held.append(chunk)  # what follows a CR decides its meaning
            continue
        held, text = [chunk[len(text) :]], b"".join([*held, text])
        if cr_only is None and (first := _LINE_END.search(text)):
            cr_only = first.group() == b"\r"
        if cr_only:
            text = text.translate(_SWAP_LINE_ENDS)
        elif b"\r" in text:
            text = text.replace(b"\r\n", b"\n")
            if b"\r" in text:
                text = _CRS_BEFORE_LF.sub(b"\n", text)
        yield text


def _whole_records(chunks: Iterable[bytes]) -> Iterator[bytes]:
    r"""Yield pieces that end where a record ends, cut before the last ``\n>`` of each chunk."""
    pending: list[bytes] = []  # the beginning of the last record seen
    for chunk in chunks:
        cut = chunk.rfind(b"\n>") + 1
        if cut:
            yield b"".join([*pending, chunk[:cut]])
            pending = []
        pending.append(chunk[cut:])
    yield b"".join(pending)


def _leading_blank_lines(piece: bytes) -> bytes:
    text = piece.lstrip(_BLANKS + b"\n")
    blank = piece[: len(piece) - len(text)]
    return blank[: blank.rfind(b"\n") + 1] if text else blank


def _parse(piece: bytes, path: Path, records_before: int, line: int) -> Block:
    """Return the records of a piece that begins with a header on `line` (1-based) of the file."""
    if not piece.startswith(b">"):
        start = quote(piece[:200].partition(b"\n")[0].decode("latin-1"), 40)
        raise UserError(
            f"{path}: is not FASTA: line {line} begins with {start} where the first '>' should be"
        )
    headers, bodies, lines = _split(piece)
    try:
        return _block(headers, bodies)
    except ValueError:
        for i, header in enumerate(headers):
            try:
                _block([header], [bodies[i]])
            except ValueError as error:
                name = quote(re.split("[ \t]", header.decode(errors="backslashreplace"))[0])
                place = f"record {records_before + i + 1} {name} (line {line + lines[i]})"
                raise UserError(f"{path}: {place}: {error}") from None
        raise


def _split(piece: bytes) -> tuple[list[bytes], list[bytes], np.ndarray]:
    """Return the header of each record without its ``>``, the lines below, and how many are above.

    Lines are found in an array: splitting at the two bytes ``\\n>`` takes twice as long.
    """
    if not piece.endswith(b"\n"):
        piece += b"\n"
    data = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lines = np.flatnonzero(data[starts] == ord(">"))
    header_ends = ends[lines].tolist()
    bounds = [*starts[lines].tolist(), len(piece)]
    headers = [piece[start + 1 : end] for start, end in zip(bounds, header_ends, strict=False)]
    bodies = [piece[end + 1 : stop - 1] for end, stop in zip(header_ends, bounds[1:], strict=True)]
    return headers, bodies, lines


def _block(headers: list[bytes], bodies: list[bytes]) -> Block:
    """Return records from what `_split` found; ValueError says what is wrong in one of them.

    What takes long is done to all records at once, and one by one only where that finds something.
    """
    ids, descriptions, flags = _parse_headers(headers)
    sequences = [body.replace(b"\n", b"") for body in bodies]
    if b"".join(sequences).translate(None, RESIDUES):
        for i, sequence in enumerate(sequences):
            if sequence.translate(None, RESIDUES):
                sequences[i], changes = _normalise(bodies[i])
                flags[i] += changes
    return Block(ids, descriptions, sequences, flags)


def _parse_headers(headers: list[bytes]) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Return ids, descriptions and flags of header lines without their ``>``."""
    joined = b"\n".join(headers)
    no_flags: tuple[str, ...] = ()
    try:
        texts, flags = joined.decode().split("\n"), [no_flags] * len(headers)
    except UnicodeDecodeError:
        texts, flags = map(list, zip(*map(_decode, headers), strict=True))
    if b"\r" in joined:
        raise ValueError("the header holds a carriage return: " + _MIXED_LINE_ENDS)
    parts = [text.partition(" ") for text in texts]
    if b"\t" in joined:
        parts = [
            text.partition("\t") if "\t" in part[0] else part
            for text, part in zip(texts, parts, strict=True)
        ]
    ids = [part[0] for part in parts]
    if not all(ids):
        raise ValueError("the header has no id; write one directly after '>'")
    return ids, [part[2] for part in parts], flags


def _decode(header: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        return header.decode(), ()
    except UnicodeDecodeError:
        return header.decode("latin-1"), ("header_latin1",)


def _normalise(body: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the sequence of a record's lines and the flags of what was changed in it."""
    written = b"".join(line.strip(_BLANKS) for line in body.split(b"\n"))
    flags = []
    sequence = written.upper()
    if sequence != written:
        flags.append("upper_cased")
    if sequence.endswith(b"*"):
        sequence = sequence[:-1]
        flags.append("stop_removed")
    if b"*" in sequence:
        flags.append("stop_replaced")
    if b"J" in sequence:
        flags.append("j_replaced")
    sequence = sequence.translate(_TO_X)
    if sequence.translate(None, RESIDUES):
        raise ValueError(_explain_character(written, sequence))
    return sequence, tuple(flags)


def _explain_character(written: bytes, sequence: bytes) -> str:
    """Say which byte of `sequence` is no residue; `written` is the same before normalising."""
    position = next(i for i, byte in enumerate(sequence) if byte not in RESIDUES)
    byte = written[position : position + 1]
    shown = repr(byte.decode()) if byte.isascii() else f"byte 0x{byte.hex()}"
    advice = _ADVICE.get(byte, "remove it, or write X for an unknown residue")
    return f"character {shown} at residue {position + 1} is no amino acid; {advice}"
