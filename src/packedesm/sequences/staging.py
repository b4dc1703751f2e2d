"""The sharder's first pass: every record once from the input to clean temporary files.

Only the lengths of all records stay in memory; the rest is read back when it is needed.
"""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from packedesm.errors import SHOWN, UserError, quote
from packedesm.options import LengthPolicy, ShardOptions
from packedesm.paths import named
from packedesm.progress import Progress
from packedesm.sequences.arrow import numbers, texts
from packedesm.sequences.doubts import find_doubts
from packedesm.sequences.fasta import Block, read_blocks
from packedesm.sequences.index import LONG_FLAGS, READ_SCHEMA


class Skipped(NamedTuple):
    """A record without a row: its number in its file and the line of its header, both from 1."""

    record: int
    line: int
    id: str


@dataclass
class Input:
    """One input file, and what it gave."""

    path: Path
    bytes: int
    records: int = 0  # that have a row
    skipped: list[Skipped] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)  # of what was read, compressed as it is

    def where(self, record: int, line: int, name: str) -> str:
        """Return what a message calls a record: its number, the line of its header, its id."""
        return f"{self.path}: record {record} {quote(name)} (line {line})"


def read_digests(path: Path) -> np.ndarray:
    """Return the 16-byte digests in a file of a staging folder: uint64 (N, 2)."""
    return np.fromfile(path, dtype=np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Found(ABC):
    """All kept records of an input, wherever they lie.

    Attributes
    ----------
    lengths
        int64 (N,): residues of every row.
    flags
        How many records carry each flag.
    examples
        The ids of the first records with each flag of `packedesm.sequences.doubts`.
    inputs
        One entry per input file.
    """

    lengths: np.ndarray
    flags: dict[str, int]
    examples: dict[str, list[str]]
    inputs: list[Input]

    @abstractmethod
    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return what `READ_SCHEMA` names of a few rows, int64 (N,)."""

    @abstractmethod
    def locate(self, *records: dict[str, Any]) -> str:
        """Return the numbers of some such records, each with its file if there are several."""


@dataclass(frozen=True)
class Staging(Found):
    """All kept records, on disk and in arrays.

    Attributes
    ----------
    fasta
        One ``>ROW`` line and one sequence line for every row.
    table
        Arrow file with the columns of `index.READ_SCHEMA`.
    sequence_digests, id_digests
        The first 16 bytes of the SHA-256 of every sequence and of every id, for `read_digests`.
    """

    fasta: Path
    table: Path
    sequence_digests: Path
    id_digests: Path

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return what `table` has of a few rows, int64 (N,), by the names of its columns."""
        table = pa.ipc.open_file(pa.memory_map(str(self.table))).read_all()
        # One by one: `take` would first join texts that together may be too long for one array.
        return [table.slice(row, 1).to_pylist()[0] for row in rows.tolist()]

    def read_groups(self, rows: int) -> Iterator[pa.Table]:
        """Yield the columns of consecutive records, at least `rows` of them but for the last."""
        # Not memory-mapped: mapped pages would add up to the whole table in this process.
        with pa.OSFile(str(self.table)) as file, pa.ipc.open_file(file) as reader:
            batches, held = [], 0
            for number in range(reader.num_record_batches):
                batches.append(reader.get_batch(number))
                held += len(batches[-1])
                if held >= rows or number == reader.num_record_batches - 1:
                    yield pa.Table.from_batches(batches)
                    batches, held = [], 0

    def locate(self, *records: dict[str, Any]) -> str:
        """Return the numbers of some lines of `table`, each with its file if there are several."""
        if len(self.inputs) == 1:
            return "records " + " and ".join(str(record["record"]) for record in records)
        places = [(self.inputs[record["file"] - 1].path, record["record"]) for record in records]
        return " and ".join(f"{path} record {number}" for path, number in places)


def stage_records(fastas: list[Path], folder: Path, options: ShardOptions) -> Staging:
    """Read every record of `fastas` in order and write the temporary files into `folder`.

    Raises
    ------
    UserError
        As `read_records`; or a record is empty and `empty_sequences` is ``error``, is longer than
        `max_length` and `long_sequences` is ``error``, or no record is left.
    """
    inputs = [Input(named(path), bytes=_size(path)) for path in fastas]
    sizes = [source.bytes for source in inputs]
    total = None if 0 in sizes else sum(sizes)  # a pipe has no size
    with (
        _StagingWriter(folder) as writer,
        Progress("reading", total, "bytes") as progress,
    ):
        for file, (path, source) in enumerate(zip(fastas, inputs, strict=True), 1):
            on_read = partial(_note, source, progress)
            for block in read_blocks(path, on_read=on_read, ids=options.ids):
                kept, records = keep(block, source, options)
                if kept:
                    writer.write(Batch(kept, writer.rows, file, records, options.length))
    if writer.rows == 0:
        names = ", ".join(str(source.path) for source in inputs)
        raise UserError(f"{names}: no record has residues; give a FASTA file with sequences")
    return writer.staging(inputs)


def _note(source: Input, progress: Progress, data: memoryview) -> None:
    source.digest.update(data)
    progress.add(len(data))


class _StagingWriter:
    """The open files of a staging folder, and what is kept of the records written to them."""

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self._paths = {
            "fasta": folder / "records.fasta",
            "table": folder / "records.arrow",
            "sequence_digests": folder / "sequences.sha256",
            "id_digests": folder / "ids.sha256",
        }
        self._lengths: list[np.ndarray] = []
        self._flagged = Flagged()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            paths = dict(self._paths)
            table = pa.ipc.new_file(str(paths.pop("table")), READ_SCHEMA)
            self._table = opened.enter_context(table)
            files = {name: opened.enter_context(path.open("wb")) for name, path in paths.items()}
            self._files = files
            self._open = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def write(self, batch: Batch) -> None:
        """Append some records."""
        self._files["fasta"].write(batch.fasta())
        self._table.write_batch(batch.table())
        self._files["sequence_digests"].write(first_halves(batch.digests))
        self._files["id_digests"].write(first_halves(batch.id_digests()))
        self._lengths.append(batch.lengths)
        self._flagged.add(batch)
        self.rows += len(batch.ids)

    def staging(self, inputs: list[Input]) -> Staging:
        """Return all that was written, after the files are closed."""
        return Staging(
            **self._paths,
            lengths=np.concatenate(self._lengths),
            flags=self._flagged.counts,
            examples=self._flagged.examples,
            inputs=inputs,
        )


def _size(path: Path) -> int:
    # What cannot be read is left to read_blocks, which says so in its own words.
    with suppress(OSError, ValueError):
        return path.stat().st_size
    return 0


class Flagged:
    """How many records carry each flag, and the ids of the first that are doubted.

    Attributes
    ----------
    examples : dict
        By flag of `packedesm.sequences.doubts`, ids.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Records by flag, in alphabetical order."""
        return dict(sorted(self._counts.items()))

    def add(self, batch: Batch) -> None:
        """Count some records."""
        self._counts.update(chain.from_iterable(batch.flags))
        for index, flag in batch.doubted:
            named = self.examples.setdefault(flag, [])
            if len(named) < SHOWN:
                named.append(batch.ids[index])


class Batch:
    """The columns of some consecutive records, the first of which is `row`.

    `records`, int64 (N,), are their numbers in the input that is `file`, both from 1. `doubted` has
    the position of a record and its flag, for each of `packedesm.sequences.doubts`.
    """

    def __init__(
        self, block: Block, row: int, file: int, records: np.ndarray, policy: LengthPolicy
    ) -> None:
        self.row, self.file, self.records = row, file, records
        self.ids, self.descriptions = block.ids, block.descriptions
        self.sequences, self.flags = block.sequences, block.flags
        self.lengths = _lengths(block)
        self.embedded_lengths = policy.embedded(self.lengths)
        self.doubted = find_doubts(self.sequences)
        for index, flag in self.doubted:
            self.flags[index] += (flag,)
        if long_flag := LONG_FLAGS.get(policy.long_sequences):
            for index in np.flatnonzero(self.lengths > policy.max_length).tolist():
                self.flags[index] += (long_flag,)
        self.digests = _digests(self.sequences)

    def fasta(self) -> bytes:
        """Return a line ``>ROW`` and one of sequence for each."""
        return b"".join([b">%d\n%s\n" % pair for pair in enumerate(self.sequences, self.row)])

    def id_digests(self) -> bytes:
        """Return the SHA-256 of every id, one behind the other."""
        return _digests([identifier.encode() for identifier in self.ids])

    def table(self) -> pa.RecordBatch:
        """Return the columns of `READ_SCHEMA`."""
        columns = {
            "row": numbers(np.arange(self.row, self.row + len(self.ids))),
            "id": texts(self.ids),
            "description": texts(self.descriptions),
            "file": numbers(np.full(len(self.ids), self.file, np.int32)),
            "record": numbers(self.records),
            "length": numbers(self.lengths.astype(np.int32)),
            "embedded_length": numbers(self.embedded_lengths.astype(np.int32)),
            "sha256": _hexadecimal(self.digests),
            "flags": texts([",".join(names) for names in self.flags]),
        }
        return pa.record_batch(columns, schema=READ_SCHEMA)


def keep(block: Block, source: Input, options: ShardOptions) -> tuple[Block, np.ndarray]:
    """Return the records that get a row, and their numbers in the file, int64 (N,), from 1.

    They are counted in `source`; what the options refuse is refused.
    """
    before = source.records + len(source.skipped)
    policy = options.length
    limit = policy.max_length if policy.long_sequences == "error" else sys.maxsize
    lengths = _lengths(block)
    odd = np.flatnonzero((lengths == 0) | (lengths > limit)).tolist()
    for index in odd:
        record, line, name = before + index + 1, int(block.lines[index]), block.ids[index]
        where = source.where(record, line, name)
        if lengths[index]:
            raise UserError(
                f"{where} has {lengths[index]} residues, more than max_length ({limit}); "
                "raise max_length or let long_sequences be truncate or window"
            )
        if options.empty_sequences == "error":
            raise UserError(f"{where} has no residues; remove it or set empty_sequences to skip")
        source.skipped.append(Skipped(record, line, name))
    source.records += len(block) - len(odd)
    records = np.arange(before + 1, before + len(block) + 1)
    return (block.select(block.sequences), records[lengths > 0]) if odd else (block, records)


def _lengths(block: Block) -> np.ndarray:
    return np.fromiter(map(len, block.sequences), np.int64, len(block))


def _digests(texts: list[bytes]) -> bytes:
    return b"".join([hashlib.sha256(text).digest() for text in texts])


def first_halves(digests: bytes) -> bytes:
    """Return the first 16 of every 32 bytes."""
    return np.frombuffer(digests, dtype="V16")[::2].tobytes()


def _hexadecimal(digests: bytes) -> pa.StringArray:
    """Return one string of 64 hexadecimal digits for each of N concatenated SHA-256 digests."""
    count = len(digests) // 32
    offsets = np.arange(count + 1, dtype=np.int32) * 64
    buffers = pa.py_buffer(offsets), pa.py_buffer(digests.hex().encode())
    return pa.StringArray.from_buffers(count, *buffers)
