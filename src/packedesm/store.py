"""Arrays on disk: written by the jobs in any order, merged in input order, published atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from packedesm.files import atomic_path
from packedesm.layout import Layout
from packedesm.runner import FinishedPack

_ROWS_AT_ONCE = 1 << 16  # rows held in memory while merging: 84 MB of 1,280 float16 numbers twice


@contextmanager
def shard_writer(
    layout: Layout,
    shard: int,
    residues: np.ndarray,
    width: int,
    outputs: Sequence[str],
    dtype: str,
) -> Iterator[ShardWriter]:
    """Give a `ShardWriter`; publish its arrays if the block succeeds and no record is missing.

    Parameters
    ----------
    layout, shard
        Where the arrays go.
    residues
        int (N,), embedded residues of each record of the shard.
    width
        Numbers in a vector, D.
    outputs, dtype
        The arrays to write and their number format, ``float32`` or ``float16``.
    """
    with ExitStack() as stack:
        arrays = {}
        for output in outputs:
            temporary = stack.enter_context(atomic_path(layout.shard_vectors(shard, output)))
            count = residues.sum() if output == "residue" else len(residues)
            arrays[output] = create_npy(temporary, (count, width), dtype)
        writer = ShardWriter(arrays, residues)
        yield writer
        writer.close()


class ShardWriter:
    """Receive the vectors of one shard, pack by pack, in any order."""

    def __init__(self, arrays: dict[str, np.memmap], residues: np.ndarray) -> None:
        self._arrays = arrays
        self._ends = np.cumsum(residues)
        self._written = np.zeros(len(residues), bool)

    def write(self, pack: FinishedPack) -> None:
        """Store the vectors of one pack.

        Raises
        ------
        RuntimeError
            If a record comes a second time, or a vector holds NaN or infinity.
        """
        rows = pack.rows
        if self._written[rows].any():
            raise RuntimeError(f"records {rows[self._written[rows]].tolist()} were embedded twice")
        for output, array in pack.vectors.items():
            if not np.isfinite(array).all():
                raise RuntimeError(_not_finite(output, array, pack))
            if output == "residue":
                stops = np.cumsum(pack.residues)
                for row, stop, count in zip(rows, stops, pack.residues, strict=True):
                    end = self._ends[row]
                    self._arrays[output][end - count : end] = array[stop - count : stop]
            else:
                self._arrays[output][rows] = array
        self._written[rows] = True

    def close(self) -> None:
        """Flush the arrays; RuntimeError if a record was not written."""
        if not self._written.all():
            missing = np.flatnonzero(~self._written)
            raise RuntimeError(
                f"{len(missing)} records have no vector, first {missing[:5].tolist()}"
            )
        for array in self._arrays.values():
            array.flush()


def create_npy(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap:
    """Create a ``.npy`` file of `shape` and return it as a writable memory map."""
    # open_memmap writes an unreadable header when a dimension is a numpy integer.
    shape = tuple(int(size) for size in shape)
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def merge_shards(layout: Layout, shards: int, outputs: Sequence[str]) -> None:
    """Concatenate the shards' arrays in input order, one row per input record.

    Records that duplicate an earlier one receive its vectors. Arrays and index are published in
    `layout`, each atomically.

    Raises
    ------
    RuntimeError
        If the shards do not hold as many rows as the index has unique records.
    """
    index = pq.read_table(layout.shard_index, columns=["row", "embedded_length", "duplicate_of"])
    rows = index["row"].to_numpy()
    source = index["duplicate_of"].fill_null(-1).to_numpy()
    unique = source < 0
    source = np.where(unique, rows, source)
    place = (np.cumsum(unique) - 1)[source]  # of each record among the unique ones
    residues = index["embedded_length"].to_numpy().astype(np.int64)
    for output in outputs:
        parts = [
            np.load(layout.shard_vectors(shard, output), mmap_mode="r") for shard in range(shards)
        ]
        if output == "residue":
            _merge_residues(layout, parts, residues, unique, place)
        else:
            _expect_rows(parts, int(unique.sum()), output)
            _write_rows(layout.vectors(output), parts, place)
    with atomic_path(layout.index) as temporary:
        temporary.write_bytes(layout.shard_index.read_bytes())


def _write_rows(path: Path, parts: list[np.ndarray], place: np.ndarray) -> None:
    """Write the rows of the concatenated `parts` that `place` names, in its order."""
    with atomic_path(path) as temporary:
        merged = create_npy(temporary, (len(place), parts[0].shape[1]), parts[0].dtype.str)
        starts = np.cumsum([0, *(len(part) for part in parts)])
        for begin, end in _chunks(len(place)):
            wanted = place[begin:end]
            owner = np.searchsorted(starts, wanted, side="right") - 1
            for part in np.unique(owner):
                mine = owner == part
                merged[begin:end][mine] = parts[part][wanted[mine] - starts[part]]
        merged.flush()


def _merge_residues(
    layout: Layout,
    parts: list[np.ndarray],
    residues: np.ndarray,
    unique: np.ndarray,
    place: np.ndarray,
) -> None:
    """Write ``residue.npy`` and ``residue_offsets.npy``."""
    offsets = np.concatenate(([0], np.cumsum(residues)))
    starts = np.concatenate(([0], np.cumsum(residues[unique])))[:-1]  # of each unique record
    _expect_rows(parts, int(residues[unique].sum()), "residue")
    bounds = np.cumsum([0, *(len(part) for part in parts)])
    with atomic_path(layout.vectors("residue")) as temporary:
        shape = (int(offsets[-1]), parts[0].shape[1])
        merged = create_npy(temporary, shape, parts[0].dtype.str)
        for row, (begin, end) in enumerate(pairwise(offsets.tolist())):
            start = starts[place[row]]
            # A record's residues never straddle two shards.
            part = np.searchsorted(bounds, start, side="right") - 1
            local = start - bounds[part]
            merged[begin:end] = parts[part][local : local + end - begin]
        merged.flush()
    with atomic_path(layout.residue_offsets) as temporary, temporary.open("wb") as handle:
        np.save(handle, offsets.astype(np.int64))


def _chunks(total: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, _ROWS_AT_ONCE):
        yield begin, min(begin + _ROWS_AT_ONCE, total)


def _expect_rows(parts: list[np.ndarray], expected: int, output: str) -> None:
    found = sum(len(part) for part in parts)
    if found != expected:
        raise RuntimeError(f"the shards hold {found} rows of {output}, the index says {expected}")


def _not_finite(output: str, array: np.ndarray, batch: FinishedPack) -> str:
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if output == "residue":
        bad = np.unique(np.searchsorted(np.cumsum(batch.residues), bad, side="right"))
    rows = batch.rows[bad[:5]].tolist()
    return (
        f"{output} vectors of the shard's records {rows} hold NaN or infinity; "
        "try dtype=bfloat16 or dtype=float32"
    )
