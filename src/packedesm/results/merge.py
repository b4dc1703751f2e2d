"""The shards' arrays merged in input order, a row for every record; written atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import atomic_path, create_npy, file_digest, write_json
from packedesm.paths import Paths
from packedesm.sequences.arrow import read_columns, to_numpy
from packedesm.sequences.index import embedded_as, write_flagged
from packedesm.sequences.summary import check_digest

_ROWS_AT_ONCE = 1 << 16  # rows held in memory while merging: 84 MB of 1,280 float16 numbers twice


def merge_shards(paths: Paths, shards: int, outputs: Sequence[str]) -> None:
    """Concatenate the shards' arrays in input order, one row per input record.

    Records that duplicate an earlier one receive its vectors. Arrays and index are written to
    `paths`, each atomically, and their digests in `paths.merging`.

    Raises
    ------
    Fault
        If a shard's arrays are not those that its job recorded, or were made from another input,
        or if the jobs of two shards differed in what decides the vectors.
    RuntimeError
        If the shards do not hold as many rows as the index has unique records.
    """
    check_digest(paths, paths.shard_index)
    runs = [_checked_run(paths, shard) for shard in range(shards)]
    _expect_one_kind(paths, runs)
    index = read_columns(paths.shard_index, ["row", "embedded_length", "duplicate_of"])
    rows = to_numpy(index["row"])
    source = to_numpy(embedded_as(index))
    unique = source == rows
    place = (np.cumsum(unique) - 1)[source]  # of each record among the unique ones
    residues = to_numpy(index["embedded_length"]).astype(np.int64)
    for output in outputs:
        parts = [
            np.load(paths.shard_vectors(shard, output), mmap_mode="r") for shard in range(shards)
        ]
        if output == "residue":
            _merge_residues(paths, parts, residues, unique, place)
        else:
            _expect_rows(parts, int(unique.sum()), output)
            _write_rows(paths.vectors(output), parts, place)
    float32_rows = [row for run in runs for row in run.float32_rows]
    write_flagged(paths.index, paths.shard_index, float32_rows)
    files = [*paths.arrays(outputs), paths.index]
    write_json(paths.merging, {"sha256": {path.name: file_digest(path) for path in files}})


def _checked_run(paths: Paths, shard: int) -> ShardRun:
    """Return ``run.json`` of a shard whose input and arrays are those that it names."""
    run = ShardRun.read(paths.shard_run(shard))
    files = {paths.shard_fasta(shard): run.fasta_sha256}
    files |= {paths.shard_vectors(shard, name): digest for name, digest in run.arrays.items()}
    for path, digest in files.items():
        if file_digest(path) != digest:
            raise Fault(
                f"{path}: is not what the job of shard {shard} recorded (damaged, or of another "
                f"run); delete {paths.shard_run(shard)} and run again"
            )
    return run


def _expect_one_kind(paths: Paths, runs: list[ShardRun]) -> None:
    first = runs[0]
    for run in runs:
        where = paths.shard_run(run.shard)
        for what in ("dtype", "output_dtype", "outputs"):
            found, expected = getattr(run.plan, what), getattr(first.plan, what)
            if found != expected:
                raise Fault(
                    f"{where}: {what} is {found}, but {expected} in shard {first.shard}; "
                    "name one in the configuration"
                )
        if run.checkpoint.sha256 != first.checkpoint.sha256:
            raise Fault(
                f"{where}: made with other weights than shard {first.shard}; "
                "delete it and run again"
            )


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
    paths: Paths,
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
    with atomic_path(paths.vectors("residue")) as temporary:
        shape = (int(offsets[-1]), parts[0].shape[1])
        merged = create_npy(temporary, shape, parts[0].dtype.str)
        for row, (begin, end) in enumerate(pairwise(offsets.tolist())):
            start = starts[place[row]]
            # A record's residues never straddle two shards.
            part = np.searchsorted(bounds, start, side="right") - 1
            local = start - bounds[part]
            merged[begin:end] = parts[part][local : local + end - begin]
        merged.flush()
    with atomic_path(paths.residue_offsets) as temporary, temporary.open("wb") as handle:
        np.save(handle, offsets.astype(np.int64))


def _chunks(total: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, total, _ROWS_AT_ONCE):
        yield begin, min(begin + _ROWS_AT_ONCE, total)


def _expect_rows(parts: list[np.ndarray], expected: int, output: str) -> None:
    found = sum(len(part) for part in parts)
    if found != expected:
        raise RuntimeError(f"the shards hold {found} rows of {output}, the index says {expected}")
