"""Arrays on disk: written by the jobs in any order, merged in input order, published atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from packedesm.embedding.fallback import not_finite
from packedesm.embedding.runner import FinishedPack
from packedesm.errors import Fault
from packedesm.files import atomic_path, file_digest, read_json, write_json
from packedesm.paths import Layout
from packedesm.sequences.shards import check_written

FLOAT32 = "float32"  # the flag of records that half precision could not embed
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
        if len(bad := not_finite(pack.vectors, pack.residues)):
            raise RuntimeError(f"vectors of the shard's records {rows[bad]} hold NaN or infinity")
        for output, array in pack.vectors.items():
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
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):
        # Writing to a mapped hole on a full disk kills the process; this raises instead.
        with path.open("r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array


def merge_shards(layout: Layout, shards: int, outputs: Sequence[str]) -> None:
    """Concatenate the shards' arrays in input order, one row per input record.

    Records that duplicate an earlier one receive its vectors. Arrays and index are published in
    `layout`, each atomically, and their digests in `layout.merging`.

    Raises
    ------
    Fault
        If a shard's arrays are not those that its job recorded, or were made from another input,
        or if the jobs of two shards differed in what decides the vectors.
    RuntimeError
        If the shards do not hold as many rows as the index has unique records.
    """
    check_written(layout, layout.shard_index)
    runs = [_checked_run(layout, shard) for shard in range(shards)]
    _expect_one_kind(layout, runs)
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
    _write_index(layout, [row for run in runs for row in run["float32_rows"]])
    files = [*layout.arrays(list(outputs)), layout.index]
    write_json(layout.merging, {"sha256": {path.name: file_digest(path) for path in files}})


def _checked_run(layout: Layout, shard: int) -> dict[str, Any]:
    """Return ``run.json`` of a shard whose input and arrays are those that it names."""
    run = read_json(layout.shard_run(shard))
    files = {layout.shard_fasta(shard): run["fasta_sha256"]}
    files |= {layout.shard_vectors(shard, name): digest for name, digest in run["arrays"].items()}
    for path, digest in files.items():
        if file_digest(path) != digest:
            raise Fault(
                f"{path}: is not what the job of shard {shard} recorded (damaged, or of another "
                f"run); delete {layout.shard_run(shard)} and run again"
            )
    return run


def _expect_one_kind(layout: Layout, runs: list[dict[str, Any]]) -> None:
    for run in runs:
        for what in ("dtype", "output_dtype", "outputs"):
            if run[what] != runs[0][what]:
                raise Fault(
                    f"{layout.shard_run(run['shard'])}: {what} is {run[what]}, but "
                    f"{runs[0][what]} in shard {runs[0]['shard']}; name one in the configuration"
                )
        if run["model"]["sha256"] != runs[0]["model"]["sha256"]:
            raise Fault(
                f"{layout.shard_run(run['shard'])}: made with other weights than shard "
                f"{runs[0]['shard']}; delete it and run again"
            )


def _write_index(layout: Layout, float32_rows: list[int]) -> None:
    """Publish the index; the records of `float32_rows` and their duplicates are flagged."""
    with atomic_path(layout.index) as temporary:
        if not float32_rows:
            temporary.write_bytes(layout.shard_index.read_bytes())
            return
        index = pq.ParquetFile(layout.shard_index)
        with pq.ParquetWriter(temporary, index.schema_arrow) as writer:
            for group in range(index.num_row_groups):
                writer.write_table(_with_float32_flag(index.read_row_group(group), float32_rows))


def _with_float32_flag(index: pa.Table, float32_rows: list[int]) -> pa.Table:
    flagged = pc.is_in(embedded_as(index), value_set=pa.array(float32_rows, pa.int64()))
    none = pc.equal(index["flags"], "")
    added = pc.if_else(none, FLOAT32, pc.binary_join_element_wise(index["flags"], FLOAT32, ","))
    column = index.schema.get_field_index("flags")
    flags = pc.if_else(flagged, added, index["flags"])
    return index.set_column(column, index.schema.field("flags"), flags)


def embedded_as(index: pa.Table) -> pa.ChunkedArray:
    """Return the row whose vector each record of an index has: its own, or its duplicate's."""
    return pc.coalesce(index["duplicate_of"], index["row"])


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
