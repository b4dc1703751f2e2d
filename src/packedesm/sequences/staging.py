"""The sharder's first pass: every record once from the input to clean temporary files.

Only the lengths of all records stay in memory; the rest is read back when it is needed.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from packedesm.errors import UserError, quote
from packedesm.options import LengthPolicy, ShardOptions
from packedesm.paths import named
from packedesm.progress import Progress
from packedesm.sequences.arrow import numbers, texts
from packedesm.sequences.fasta import Block, read_blocks
from packedesm.sequences.index import LONG_FLAGS, READ_SCHEMA


@dataclass
class Input:
    """One input file: what it gave, and where its records stand in the whole input."""

    path: Path
    bytes: int
    first_row: int = 0
    records: int = 0
    skipped: list[int] = field(default_factory=list)  # positions of empty records in the file
    digest: Any = field(default_factory=hashlib.sha256)  # of what was read, compressed as it is

    def number(self, row: int) -> int:
        """Return the 1-based position in the file of the record that became `row`."""
        position = row - self.first_row
        for skipped in self.skipped:
            position += skipped <= position
        return position + 1


def read_digests(path: Path) -> np.ndarray:
    """Return the 16-byte digests in a file of a staging folder: uint64 (N, 2)."""
    return np.fromfile(path, dtype=np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class Staging:
    """All kept records, on disk and in arrays.

    Attributes
    ----------
    fasta
        One ``>ROW`` line and one sequence line for every row.
    table
        Arrow file with the columns of `index.READ_SCHEMA`.
    sequence_digests, id_digests
        The first 16 bytes of the SHA-256 of every sequence and of every id, for `read_digests`.
    lengths
        int64 (N,): residues of every row.
    flags
        How many records carry each flag.
    inputs
        One entry per input file.
    """

    fasta: Path
    table: Path
    sequence_digests: Path
    id_digests: Path
    lengths: np.ndarray
    flags: dict[str, int]
    inputs: list[Input]

    def read_table(self) -> pa.Table:
        """Return the records' columns, memory-mapped."""
        return pa.ipc.open_file(pa.memory_map(str(self.table))).read_all()

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

    def locate(self, *rows: int) -> str:
        """Return the record numbers of some rows, each with its file if there are several."""
        sources = [next(i for i in reversed(self.inputs) if i.first_row <= row) for row in rows]
        numbers = [source.number(row) for source, row in zip(sources, rows, strict=True)]
        if len(self.inputs) == 1:
            return "records " + " and ".join(map(str, numbers))
        places = zip(sources, numbers, strict=True)
        return " and ".join(f"{source.path} record {number}" for source, number in places)


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
        for path, source in zip(fastas, inputs, strict=True):
            source.first_row = writer.rows
            for block in read_blocks(path, on_read=partial(_note, source, progress)):
                if kept := _keep(block, source, options):
                    writer.write(_Batch(kept, writer.rows, options.length))
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
        self._flags: Counter[str] = Counter()
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

    def write(self, batch: _Batch) -> None:
        """Append some records."""
        self._files["fasta"].write(batch.fasta())
        self._table.write_batch(batch.table())
        self._files["sequence_digests"].write(_first_halves(batch.digests))
        ids = _digests([identifier.encode() for identifier in batch.ids])
        self._files["id_digests"].write(_first_halves(ids))
        self._lengths.append(batch.lengths)
        self._flags.update(chain.from_iterable(batch.flags))
        self.rows += len(batch.ids)

    def staging(self, inputs: list[Input]) -> Staging:
        """Return all that was written, after the files are closed."""
        lengths = np.concatenate(self._lengths)
        return Staging(
            **self._paths, lengths=lengths, flags=dict(sorted(self._flags.items())), inputs=inputs
        )


def _size(path: Path) -> int:
    # What cannot be read is left to read_blocks, which says so in its own words.
    with suppress(OSError, ValueError):
        return path.stat().st_size
    return 0


class _Batch:
    """The columns of some consecutive records, the first of which is `row`."""

    def __init__(self, block: Block, row: int, policy: LengthPolicy) -> None:
        self.row = row
        self.ids, self.descriptions = block.ids, block.descriptions
        self.sequences, self.flags = block.sequences, block.flags
        self.lengths = _lengths(block)
        self.embedded_lengths = policy.embedded(self.lengths)
        if long_flag := LONG_FLAGS.get(policy.long_sequences):
            for index in np.flatnonzero(self.lengths > policy.max_length):
                self.flags[index] += (long_flag,)
        self.digests = _digests(self.sequences)

    def fasta(self) -> bytes:
        return b"".join([b">%d\n%s\n" % pair for pair in enumerate(self.sequences, self.row)])

    def table(self) -> pa.RecordBatch:
        columns = {
            "row": numbers(np.arange(self.row, self.row + len(self.ids))),
            "id": texts(self.ids),
            "description": texts(self.descriptions),
            "length": numbers(self.lengths.astype(np.int32)),
            "embedded_length": numbers(self.embedded_lengths.astype(np.int32)),
            "sha256": _hexadecimal(self.digests),
            "flags": texts([",".join(names) for names in self.flags]),
        }
        return pa.record_batch(columns, schema=READ_SCHEMA)


def _keep(block: Block, source: Input, options: ShardOptions) -> Block:
    """Return the records that get a row, counted in `source`; refuse what the options refuse."""
    before = source.records + len(source.skipped)
    policy = options.length
    limit = policy.max_length if policy.long_sequences == "error" else sys.maxsize
    lengths = _lengths(block)
    odd = np.flatnonzero((lengths == 0) | (lengths > limit)).tolist()
    for index in odd:
        name = f"{source.path}: record {before + index + 1} {quote(block.ids[index])}"
        if lengths[index]:
            raise UserError(
                f"{name} has {lengths[index]} residues, more than max_length ({limit}); "
                "raise max_length or let long_sequences be truncate or window"
            )
        if options.empty_sequences == "error":
            raise UserError(f"{name} has no residues; remove it or set empty_sequences to skip")
        source.skipped.append(before + index)
    kept = block.select(block.sequences) if odd else block
    source.records += len(kept)
    return kept


def _lengths(block: Block) -> np.ndarray:
    return np.fromiter(map(len, block.sequences), np.int64, len(block))


def _digests(texts: list[bytes]) -> bytes:
    return b"".join([hashlib.sha256(text).digest() for text in texts])


def _first_halves(digests: bytes) -> bytes:
    return np.frombuffer(digests, dtype="V16")[::2].tobytes()


def _hexadecimal(digests: bytes) -> pa.StringArray:
    """Return one string of 64 hexadecimal digits for each of N concatenated SHA-256 digests."""
    count = len(digests) // 32
    offsets = np.arange(count + 1, dtype=np.int32) * 64
    buffers = pa.py_buffer(offsets), pa.py_buffer(digests.hex().encode())
    return pa.StringArray.from_buffers(count, *buffers)
