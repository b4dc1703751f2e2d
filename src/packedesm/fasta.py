"""Read FASTA as it really comes: one pass in constant memory that normalises and never guesses.

Bytes stream through four steps: decompress, unify line ends, cut where a record ends, parse.
What cannot be understood without doubt is an error; what is changed is flagged on its record.
"""

import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from packedesm.errors import UserError, quote, quote_path
from packedesm.tokens import GAPS, RESIDUES

FLAGS = ("header_latin1", "upper_cased", "stop_removed", "stop_replaced", "j_replaced")
"""What may be changed in a record on reading, by the name that `Record.flags` carries."""

BLOCK_SIZE = 1 << 20  # decompressed bytes; 8 MiB was a fifth slower, out of the cache

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
    on_read: Callable[[int], None] = lambda _amount: None,
) -> Iterator[list[Record]]:
    """Yield the same records as `read_records` in lists, about one per `block_size` bytes.

    `on_read` is told how many more bytes of the file, as it lies on disk, have been read.
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
            records = _parse(piece, path, records_before, line)
            yield records
            records_before += len(records)
            line += piece.count(b"\n")
    if not started:
        raise UserError(f"{path}: the file is empty; give a FASTA file with at least one record")


def _read_chunks(path: Path, block_size: int, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, without a UTF-8 byte-order mark."""
    try:
        raw = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{quote_path(path)}: cannot be read ({reason}); give the path of a readable FASTA file"
        ) from error
    with raw:
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
            position = 0
            for chunk in chain([first.removeprefix(_UTF8_MARK)], rest):
                yield chunk
                if raw.seekable():  # a pipe has no position
                    on_read(raw.tell() - position)
                    position = raw.tell()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(
                f"{path}: truncated or corrupt gzip data ({error}); fetch or compress it again"
            ) from error
        except OSError as error:
            raise UserError(f"{path}: reading failed ({error.strerror}); fetch it again") from error
        if magic.startswith(_GZIP) and magic[3:4] == b"\x04" and magic[12:14] == b"BC":
            _check_bgzf_end(raw, path)


def _check_bgzf_end(raw: BinaryIO, path: Path) -> None:
    # A bgzip file is many gzip members: cut between two of them, it still decompresses cleanly.
    if raw.seekable():
        raw.seek(max(raw.seek(0, 2) - len(_BGZF_END), 0))
        if raw.read() != _BGZF_END:
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


def _parse(piece: bytes, path: Path, records_before: int, line: int) -> list[Record]:
    """Return the records of a piece that begins with a header on `line` (1-based) of the file."""
    if not piece.startswith(b">"):
        start = quote(piece[:200].partition(b"\n")[0].decode("latin-1"), 40)
        raise UserError(
            f"{path}: is not FASTA: line {line} begins with {start} where the first '>' should be"
        )
    texts = piece[1:].split(b"\n>")
    records = []
    for text in texts:
        header, _, body = text.partition(b"\n")
        try:
            identifier, description, flags = _parse_header(header)
            sequence = body.replace(b"\n", b"")
            if sequence.translate(None, RESIDUES):
                sequence, changes = _normalise(body)
                flags += changes
        except ValueError as error:
            name = quote(re.split("[ \t]", header.decode(errors="backslashreplace"))[0])
            line += sum(before.count(b"\n") + 1 for before in texts[: len(records)])
            number = records_before + len(records) + 1
            raise UserError(f"{path}: record {number} {name} (line {line}): {error}") from None
        records.append(Record._make((identifier, description, sequence, flags)))
    return records


def _parse_header(header: bytes) -> tuple[str, str, tuple[str, ...]]:
    """Return id, description and flags of a header line without its ``>``."""
    flags: tuple[str, ...] = ()
    try:
        text = header.decode()
    except UnicodeDecodeError:
        text, flags = header.decode("latin-1"), ("header_latin1",)
    if b"\r" in header:
        raise ValueError("the header holds a carriage return: " + _MIXED_LINE_ENDS)
    identifier, _, description = text.partition(" ")
    if "\t" in identifier:
        identifier, _, description = text.partition("\t")
    if not identifier:
        raise ValueError("the header has no id; write one directly after '>'")
    return identifier, description, flags


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
