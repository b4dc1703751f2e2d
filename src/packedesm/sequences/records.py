"""The records of an input in memory, as `packedesm.sequences.shards` puts them on a disk."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packedesm.errors import UserError
from packedesm.options import ShardOptions
from packedesm.paths import named
from packedesm.sequences.arrow import numbers
from packedesm.sequences.fasta import read_blocks
from packedesm.sequences.given import item, read_given
from packedesm.sequences.index import READ_SCHEMA, with_duplicates
from packedesm.sequences.partition import duplicates, first_occurrences
from packedesm.sequences.repeats import count_repeats
from packedesm.sequences.staging import Batch, Flagged, Found, Input, first_halves, keep
from packedesm.sequences.summary import warnings

logger = logging.getLogger(__name__)


class Given(Input):
    """What a program hands over in place of an input file; its records are items, from 0."""

    def __init__(self) -> None:
        super().__init__(Path("sequences"), bytes=0)

    def where(self, record: int, line: int, name: str) -> str:
        """Return what a message calls an item: its place, and its id where that is another."""
        return item(record - 1, name)


@dataclass(frozen=True)
class Records(Found):
    """All kept records of an input, in order and in memory.

    Attributes
    ----------
    table
        Columns of `packedesm.sequences.index.READ_SCHEMA`.
    sequences
        The residues of each.
    duplicate_of
        int64 (N,): the row whose vector a row receives, -1 for its own.
    """

    table: pa.Table
    sequences: list[bytes]
    duplicate_of: np.ndarray

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def index(self) -> pa.Table:
        """The columns of ``index.parquet``."""
        return with_duplicates(self.table, self.duplicate_of)

    @property
    def unique(self) -> np.ndarray:
        """The rows that are embedded, ascending: int64 (U,)."""
        return np.flatnonzero(self.duplicate_of < 0)

    def records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """Return what `table` has of a few rows, int64 (N,), by the names of its columns."""
        return self.table.take(numbers(np.asarray(rows, np.int64))).to_pylist()

    def locate(self, *records: dict[str, Any]) -> str:
        """Return the numbers of some lines of `table`."""
        if isinstance(self.inputs[0], Given):
            return "items " + " and ".join(str(record["record"] - 1) for record in records)
        return "records " + " and ".join(str(record["record"]) for record in records)

    def name(self, row: int) -> str:
        """Return what the user calls a record."""
        (record,) = self.records(np.array([row]))
        if isinstance(self.inputs[0], Given):
            return item(record["record"] - 1, record["id"])
        return f"record {record['record']} ({record['id']!r})"


def records_of(source: Path | Iterable[Any] | Mapping[Any, Any], options: ShardOptions) -> Records:
    """Read all records of a FASTA file, or of what a program hands over.

    They are cleaned, flagged, refused, and where that is asked for found to be duplicates, as
    those of a run are; what a run would warn of is logged.

    Parameters
    ----------
    source
        The path of a file, or what `packedesm.sequences.given.read_given` takes.
    options
        How they are read; what a program hands over has its ids already.

    Raises
    ------
    UserError
        If the input is at fault. A file must have records, a list may be empty.
    """
    gathering = _Gathering(options)
    if isinstance(source, Path):
        found = Input(named(source), bytes=0)
        for block in read_blocks(source, ids=options.ids):
            gathering.add(block, found)
        if not gathering.sequences:
            raise UserError(f"{found.path}: no record has residues; give a FASTA file with some")
    else:
        found = Given()
        for block in read_given(source):
            gathering.add(block, found)
    return gathering.records(found)


class _Gathering:
    """Records as they come, and what is known of them when all have."""

    def __init__(self, options: ShardOptions) -> None:
        self.sequences: list[bytes] = []
        self._options = options
        self._flagged = Flagged()
        self._tables: list[pa.RecordBatch] = []
        self._digests = {"sequence": bytearray(), "id": bytearray()}

    def add(self, block: Any, source: Input) -> None:
        kept, numbered = keep(block, source, self._options)
        if not kept:
            return
        batch = Batch(kept, len(self.sequences), 1, numbered, self._options.length)
        self.sequences += batch.sequences
        self._flagged.add(batch)
        self._tables.append(batch.table())
        self._digests["sequence"] += first_halves(batch.digests)
        self._digests["id"] += first_halves(batch.id_digests())

    def records(self, source: Input) -> Records:
        first, repeated = np.zeros(0, np.int64), 0
        if self.sequences:
            first = first_occurrences(self._found("sequence"))
        records = Records(
            table=pa.Table.from_batches(self._tables, READ_SCHEMA),
            sequences=self.sequences,
            lengths=np.fromiter(map(len, self.sequences), np.int64, len(self.sequences)),
            flags=self._flagged.counts,
            examples=self._flagged.examples,
            inputs=[source],
            duplicate_of=duplicates(first, self._options.deduplicate),
        )
        if self.sequences:
            repeated = count_repeats(records, self._found("id"), first)
        for line in warnings(records, repeated, self._options.length.max_length):
            logger.warning("%s", line)
        return records

    def _found(self, what: str) -> np.ndarray:
        return np.frombuffer(self._digests[what], np.uint64).reshape(-1, 2)
