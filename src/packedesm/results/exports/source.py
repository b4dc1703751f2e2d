"""What is exported: arrays of finished results, block by block, and the names of their records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from packedesm.outputs import RECORD, Array
from packedesm.paths import Paths
from packedesm.results.exports.sequences import sequences
from packedesm.results.index_file import index_columns
from packedesm.results.reader import Results
from packedesm.sequences.arrow import to_numpy

BLOCK_BYTES = 1 << 24  # of an array that are held in memory at once


@dataclass(frozen=True)
class Source:
    """Some arrays of finished results.

    They are read, not mapped: what an export needs of memory is one block, and what a map has
    touched counts too where memory is limited.

    Parameters
    ----------
    results
        The results.
    arrays
        What is exported of them, at least one array.
    keys
        What each record is called, N of them; several may share one, see `rows`.
    rows
        The records that are exported, ascending: all, or the first of each key.
    called
        Which of the format's ``keys`` those are.
    fasta
        Where the sequences are read, see `packedesm.results.exports.sequences`.
    """

    results: Results
    arrays: tuple[Array, ...]
    keys: list[str]
    rows: range | list[int]
    called: str = "id"
    fasta: tuple[Path, ...] = ()

    def of(self, arrays: Sequence[Array]) -> Source:
        """Return the same with other arrays."""
        return replace(self, arrays=tuple(arrays))

    @property
    def model_name(self) -> str:
        """The model, as the user named it; of one that is named by a path the last part of it."""
        return Path(str(self.results.manifest["model"]["model"])).name

    @property
    def ids(self) -> list[str]:
        """The records' ids, in input order."""
        return self.results.ids

    def dtype(self, array: Array) -> np.dtype:
        """Return the number format of an array's file."""
        return self._array(array).dtype

    def line(self, array: Array) -> tuple[int, ...]:
        """Return the shape of one line of an array."""
        return self._array(array).shape[1:]

    def offsets(self, array: Array) -> np.ndarray:
        """Return where each record's lines begin, and the last one's end: int64 (N + 1,)."""
        if array.per not in self._known:
            self._known[array.per] = self.results.offsets(array.name)
        return self._known[array.per]

    def at(self, array: Array, row: int) -> np.ndarray:
        """Return what one record has of an array: one line, or all its lines."""
        found = self._array(array)
        if array.per == RECORD:
            return np.array(found[row])
        start, end = self.offsets(array)[row : row + 2]
        return np.array(found[start:end])

    def blocks(
        self, array: Array, rows_at_once: int | None = None
    ) -> Iterator[tuple[range, np.ndarray]]:
        """Yield rows and their lines, all in order.

        About `BLOCK_BYTES` at a time; or, of an array with a line for each record, so many rows.
        """
        offsets, found = self.offsets(array), self._array(array)
        line = found.dtype.itemsize * int(np.prod(found.shape[1:], dtype=np.int64))
        most = rows_at_once or max(1, BLOCK_BYTES // line)
        path = self.results.path / f"{array.name}.npy"
        with path.open("rb") as handle:
            handle.seek(found.offset)  # type: ignore[attr-defined]
            row = 0
            while row < len(offsets) - 1:
                last = int(np.searchsorted(offsets, offsets[row] + most, side="right")) - 1
                rows = range(row, max(row + 1, last))
                count = int(offsets[rows.stop] - offsets[row])
                values = np.fromfile(handle, found.dtype, count * (line // found.dtype.itemsize))
                yield rows, values.reshape(count, *found.shape[1:])
                row = rows.stop

    def records(self, array: Array) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the exported rows in order, each with its line or its lines."""
        wanted = self.rows if isinstance(self.rows, range) else set(self.rows)
        offsets = self.offsets(array)
        single = array.per == RECORD
        for rows, lines in self.blocks(array):
            bounds = (offsets[rows.start : rows.stop + 1] - offsets[rows.start]).tolist()
            for place, row in enumerate(rows):
                if row in wanted:
                    begin, end = bounds[place : place + 2]
                    yield row, lines[begin] if single else lines[begin:end]

    def sequences(self) -> Iterator[bytes]:
        """Yield the sequence of every record, in order; raises as that of the same name."""
        return sequences(self.results, self.fasta)

    def lengths(self, *, embedded: bool) -> np.ndarray:
        """Return the residues of each record, or those that were embedded: int64 (N,)."""
        column = "embedded_length" if embedded else "length"
        index = index_columns(Paths(self.results.path).index, [column])
        return to_numpy(index[column]).astype(np.int64)

    def _array(self, array: Array) -> np.ndarray:
        return self.results.array(array.name)

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        return {}
