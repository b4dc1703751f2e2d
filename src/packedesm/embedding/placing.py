"""Where the vectors of packs go, in whatever order packs finish: to the places of their records."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from packedesm.embedding.masked import CopyWriter
from packedesm.embedding.pack import FinishedPack, not_finite
from packedesm.errors import plural
from packedesm.outputs import RECORD, Array


class ShardWriter:
    """Receive the vectors of one shard, pack by pack, in any order.

    Parameters
    ----------
    arrays
        Where they go by name, in files or in memory.
    residues
        int (N,), embedded residues of each record.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], residues: np.ndarray) -> None:
        masked = {name for name in arrays if Array.named(name).masked}
        self._all = arrays.values()
        self._arrays = {name: arrays[name] for name in arrays if name not in masked}
        self._ends = {name: np.cumsum(Array.named(name).lines(residues)) for name in self._arrays}
        # Without such arrays no record goes through the model.
        self._written = np.zeros(len(residues) if self._arrays else 0, bool)
        self._copies = None
        if masked:
            self._copies = CopyWriter({name: arrays[name] for name in masked}, residues)

    def write(self, pack: FinishedPack) -> None:
        """Store the vectors of one pack.

        Raises
        ------
        RuntimeError
            If a record comes a second time, or a vector holds NaN or infinity.
        """
        if any(Array.named(name).masked for name in pack.vectors):
            self._write_copies(pack)
            return
        rows = pack.rows
        if self._written[rows].any():
            raise RuntimeError(f"records {rows[self._written[rows]].tolist()} were embedded twice")
        if len(bad := not_finite(pack.vectors, pack.residues)):
            raise RuntimeError(f"vectors of the shard's records {rows[bad]} hold NaN or infinity")
        for name, array in pack.vectors.items():
            if Array.named(name).per == RECORD:
                self._arrays[name][rows] = array
                continue
            counts = Array.named(name).lines(pack.residues)
            ends = self._ends[name][rows]
            for end, stop, count in zip(ends, np.cumsum(counts), counts, strict=True):
                self._arrays[name][end - count : end] = array[stop - count : stop]
        self._written[rows] = True

    def _write_copies(self, pack: FinishedPack) -> None:
        if len(bad := not_finite(pack.vectors, pack.residues)):
            raise RuntimeError(f"vectors of the job's items {pack.rows[bad]} hold NaN or infinity")
        assert self._copies is not None
        self._copies.write(pack)

    def close(self) -> None:
        """Flush the arrays; RuntimeError if a record was not written."""
        if not self._written.all():
            missing = np.flatnonzero(~self._written)
            raise RuntimeError(
                f"no vector for {plural(len(missing), 'record')}, first {missing[:5].tolist()}"
            )
        if self._copies is not None:
            self._copies.close()
        for array in self._all:
            if isinstance(array, np.memmap):
                array.flush()
