"""Read FASTA as it really comes: one pass in constant memory that normalises and never guesses.

Bytes stream through `packedesm.sequences.pieces`; here what comes of it is parsed.
What cannot be understood without doubt is an error; what is changed is flagged on its record.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from packedesm.alphabet import RESIDUES
from packedesm.errors import UserError, quote
from packedesm.paths import named
from packedesm.sequences.advice import MIXED_LINE_ENDS, explain, is_three_letter_code
from packedesm.sequences.pieces import (
    BLANKS,
    MAX_RECORD_BYTES,
    RecordTooLongError,
    read_pieces,
)

BLOCK_SIZE = 1 << 20  # decompressed bytes; 8 MiB was a fifth slower, out of the cache

_TO_X = bytes.maketrans(b"*J", b"XX")


class Record(NamedTuple):
    """One FASTA record.

    Attributes
    ----------
    id
        The header up to its first space or tab; where headers are ids, all of it but blanks at
        its end.
    description
        All of the header after that one space or tab, unchanged; empty where headers are ids.
    sequence
        Upper-case residue letters that ESM-2 knows; may be empty.
    flags
        Names from `packedesm.sequences.flags.FLAGS` for what was changed.
    """

    id: str
    description: str
    sequence: bytes
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records, each attribute of all of them in one list; iterable as `Record`.

    Besides: `lines`, int64 (N,), on which their headers stand in the file, from 1.
    """

    ids: list[str]
    descriptions: list[str]
    sequences: list[bytes]
    flags: list[tuple[str, ...]]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Record]:
        return map(Record._make, zip(*self._columns(), strict=True))

    def select(self, wanted: list) -> "Block":
        """Return the records for which `wanted`, one value each, is true."""
        ids, descriptions, sequences, flags = (
            list(compress(column, wanted)) for column in self._columns()
        )
        lines = self.lines[np.fromiter(map(bool, wanted), bool, len(wanted))]
        return Block(ids, descriptions, sequences, flags, lines)

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
        The file cannot be read, is not FASTA, is truncated, or holds a header without an id, a
        character that stands for no residue or three-letter code. Records before the fault may
        have been yielded.
    """
    return chain.from_iterable(read_blocks(path))


def read_blocks(
    path: Path,
    block_size: int = BLOCK_SIZE,
    on_read: Callable[[memoryview], object] = len,
    *,
    ids: str = "first_word",
) -> Iterator[Block]:
    """Yield the same records as `read_records` in blocks, about one per `block_size` bytes.

    `on_read` is given the bytes of the file, as they lie on disk, when they have been read. `ids`
    is ``first_word``, or ``header``: the whole header is the id.
    """
    path = Path(path)
    records_before, line = 0, 1
    pieces = read_pieces(path, block_size, on_read)
    path = named(path)
    try:
        for piece in pieces:
            if not records_before:
                blank = _leading_blank_lines(piece)
                line += blank.count(b"\n")
                piece = piece[len(blank) :]
                if not piece:
                    continue
            # bytes.count takes ten times as long for a byte that is this frequent.
            lines = int(np.count_nonzero(np.frombuffer(piece, np.uint8) == ord("\n")))
            headers, bodies, above = _split(piece)
            del piece  # it may be one long record, and is not to be held twice
            block = _parse(headers, bodies, path, records_before, line + above, ids)
            del bodies
            yield block
            records_before += len(block)
            line += lines
    except RecordTooLongError:
        raise UserError(
            f"{path}: record {records_before + 1:,} (line {line:,}) is longer than "
            f"{MAX_RECORD_BYTES:,} bytes, which no protein is; remove it"
        ) from None
    if not records_before:
        raise UserError(f"{path}: the file is empty; give a FASTA file with at least one record")


def _leading_blank_lines(piece: bytes) -> bytes:
    text = piece.lstrip(BLANKS + b"\n")
    blank = piece[: len(piece) - len(text)]
    return blank[: blank.rfind(b"\n") + 1] if text else blank


def _parse(
    headers: list[bytes],
    bodies: list[bytes],
    path: Path,
    records_before: int,
    lines: np.ndarray,
    ids: str,
) -> Block:
    """Return the records of a piece, whose headers stand on `lines` (1-based) of the file."""
    try:
        return _block(headers, bodies, lines, ids)
    except ValueError:
        for i, header in enumerate(headers):
            try:
                _block([header], [bodies[i]], lines[[i]], ids)
            except ValueError as error:
                text = header.decode(errors="backslashreplace")
                name = quote(text if ids == "header" else re.split("[ \t]", text)[0])
                place = f"record {records_before + i + 1} {name} (line {lines[i]})"
                reason = str(error) or explain(header, bodies[i], int(lines[i]))
                raise UserError(f"{path}: {place}: {reason}") from None
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


def _block(headers: list[bytes], bodies: list[bytes], lines: np.ndarray, ids: str) -> Block:
    """Return records from what `_split` found; ValueError if something is wrong in one of them.

    What takes long is done to all records at once, and one by one only where that finds something.
    """
    names, descriptions, flags = _parse_headers(headers, whole=ids == "header")
    sequences = [body.replace(b"\n", b"") for body in bodies]
    if b"".join(sequences).translate(None, RESIDUES):
        for i, sequence in enumerate(sequences):
            if sequence.translate(None, RESIDUES):
                sequences[i], changes = clean(bodies[i])
                flags[i] += changes
    return Block(names, descriptions, sequences, flags, lines)


def clean(body: bytes) -> tuple[bytes, tuple[str, ...]]:
    r"""Return the sequence on a record's lines, ended by ``\n``, and flags of what was changed.

    Raises
    ------
    ValueError
        Without text: it is no sequence, and only its lines tell what it may be.
    """
    sequence = body.replace(b"\n", b"")
    if any(blank in sequence for blank in BLANKS):
        sequence = b"".join([part.strip(BLANKS) for part in body.split(b"\n")])
    return _normalise(sequence)


def _parse_headers(
    headers: list[bytes], *, whole: bool
) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """Return ids, descriptions and flags of header lines without their ``>``.

    `whole` makes ids of all of a header but blanks at its end.
    """
    joined = b"\n".join(headers)
    no_flags: tuple[str, ...] = ()
    try:
        texts, flags = joined.decode().split("\n"), [no_flags] * len(headers)
    except UnicodeDecodeError:
        texts, flags = map(list, zip(*map(_decode, headers), strict=True))
    if b"\r" in joined:
        raise ValueError("the header holds a carriage return: " + MIXED_LINE_ENDS)
    parts = [text.partition(" ") for text in texts]
    if b"\t" in joined:
        parts = [
            text.partition("\t") if "\t" in part[0] else part
            for text, part in zip(texts, parts, strict=True)
        ]
    ids = [part[0] for part in parts]
    if not all(ids):
        raise ValueError("the header has no id; write one directly after '>'")
    if whole:
        return [text.rstrip(BLANKS.decode()) for text in texts], [""] * len(texts), flags
    return ids, [part[2] for part in parts], flags


def _decode(header: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        return header.decode(), ()
    except UnicodeDecodeError:
        return header.decode("latin-1"), ("header_latin1",)


def _normalise(written: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return a record's sequence and the flags of what was changed in it.

    Raises
    ------
    ValueError
        Without text: it is no sequence, and only its lines tell what it may be.
    """
    flags = []
    sequence = written.upper()
    if sequence != written:
        if is_three_letter_code(written):
            raise ValueError
        flags.append("upper_cased")
    if sequence.endswith(b"*"):
        sequence = sequence[:-1]
        flags.append("stop_removed")
    if b"*" in sequence:
        flags.append("stop_replaced")
    if b"J" in sequence:
        flags.append("j_replaced")
    if "stop_replaced" in flags or "j_replaced" in flags:  # else it would be one more copy
        sequence = sequence.translate(_TO_X)
    if sequence.translate(None, RESIDUES):
        raise ValueError
    return sequence, tuple(flags)
