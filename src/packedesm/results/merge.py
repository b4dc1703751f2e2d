"""The shards' arrays merged in input order, a row for every record; written atomically."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import atomic_path, create_npy, file_digest, write_record
from packedesm.paths import OUTPUTS, Paths
from packedesm.results.exports.record import remove_exports
from packedesm.results.parts import Parts
from packedesm.sequences.arrow import read_columns, to_numpy
from packedesm.sequences.index import embedded_as, write_flagged
from packedesm.sequences.summary import read_summary, reading_sharded, written_digest

logger = logging.getLogger(__name__)

_BYTES_AT_ONCE = 1 << 24  # of an array that are held in memory while merging


class _Places(NamedTuple):
    """Where vectors come from, per row of the input."""

    own: np.ndarray  # bool (N,), its vector is the next one of the shards
    source: np.ndarray  # int64 (N,), else it has that of this earlier row
    residues: np.ndarray  # int64 (N,), that are embedded


def merge_shards(paths: Paths, shards: int, outputs: Sequence[str]) -> None:
    """Concatenate the shards' arrays in input order, one row per input record.

    Records that duplicate an earlier one receive its vectors. Arrays, index and the table of
    skipped records are written to `paths`, and appear when all that they were made from has been
    read as it was written; their digests stand in `paths.merging`; `paths.merging_seconds` says how
    long it took.

    Raises
    ------
    Fault
        If a shard's arrays are not those that its job recorded, or were made from another input,
        or if the jobs of two shards differed in what decides the vectors.
    RuntimeError
        If the shards do not hold as many rows as the index has unique records.
    """
    start = time.perf_counter()
    summary = read_summary(paths)
    runs = [_own_run(paths, shard, summary) for shard in range(shards)]
    _expect_one_kind(paths, runs)
    digests: dict[str, str] = {}
    with ExitStack() as appearing:

        def new(path: Path) -> Path:
            return appearing.enter_context(atomic_path(path))

        with reading_sharded(paths, paths.shard_index, summary=summary):
            places = _places(paths)
            for output in outputs:
                with Parts(_arrays(paths, runs, output)) as parts:
                    path = paths.vectors(output)
                    write = _write_residues if output == "residue" else _write_rows
                    digests[path.name] = write(new(path), parts, places)
                    parts.finish(output)
            if "residue" in outputs:
                digests |= _write_offsets(paths, places, new)
            index = new(paths.index)
            write_flagged(index, paths.shard_index, [n for run in runs for n in run.float32_rows])
            digests[paths.index.name] = file_digest(index)
        with reading_sharded(paths, paths.shard_skipped, summary=summary):
            skipped = new(paths.skipped)
            shutil.copyfile(paths.shard_skipped, skipped)
            digests[paths.skipped.name] = file_digest(skipped)
        _retire(paths, outputs)
    made_from = [run.record_sha256 for run in runs]
    write_record(paths.merging, {"sha256": digests, "made_from": made_from})
    write_record(paths.merging_seconds, {"seconds": time.perf_counter() - start})


def _retire(paths: Paths, outputs: Sequence[str]) -> None:
    """Remove what says that the results are finished, and arrays that would not be of this run."""
    paths.manifest.unlink(missing_ok=True)
    remove_exports(paths)
    for path in set(paths.arrays(OUTPUTS)) - set(paths.arrays(outputs)):
        if path.exists():
            logger.warning("%s: is of an earlier run with other outputs; removed", path)
            path.unlink()


def _own_run(paths: Paths, shard: int, summary: Mapping[str, Any]) -> ShardRun:
    """Return ``run.json`` of a shard; Fault if it is that of another input."""
    run = ShardRun.read(paths.shard_run(shard))
    if run.fasta_sha256 != written_digest(summary, paths, paths.shard_fasta(shard)):
        raise Fault(
            f"{paths.shard_run(shard)}: is of another input than {paths.shard_fasta(shard)}; "
            "delete it and run again"
        )
    return run


def _arrays(paths: Paths, runs: list[ShardRun], output: str) -> dict[Path, str]:
    return {paths.shard_vectors(run.shard, output): run.arrays[output] for run in runs}


def _places(paths: Paths) -> _Places:
    index = read_columns(paths.shard_index, ["row", "embedded_length", "duplicate_of"])
    source = to_numpy(embedded_as(index))
    residues = to_numpy(index["embedded_length"]).astype(np.int64)
    return _Places(source == to_numpy(index["row"]), source, residues)


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


def _write_rows(path: Path, parts: Parts, places: _Places) -> str:
    """Write the vectors of all rows; return the digest of the file."""
    merged = create_npy(path, (len(places.own), parts.width), parts.dtype.str)
    digest = _begin_digest(path, merged)
    at_once = max(1, _BYTES_AT_ONCE // (merged.itemsize * parts.width))
    for begin in range(0, len(merged), at_once):
        rows = slice(begin, begin + at_once)
        block, own = merged[rows], places.own[rows]
        block[own] = parts.read(int(own.sum()))
        block[~own] = merged[places.source[rows][~own]]
        digest.update(block.data)
    merged.flush()
    return digest.hexdigest()


def _write_residues(path: Path, parts: Parts, places: _Places) -> str:
    """Write the vectors of all residues of all rows; return the digest of the file."""
    offsets = _offsets(places)
    merged = create_npy(path, (int(offsets[-1]), parts.width), parts.dtype.str)
    digest = _begin_digest(path, merged)
    bounds = pairwise(offsets.tolist())
    for own, source, (begin, end) in zip(places.own, places.source, bounds, strict=True):
        block = merged[begin:end]
        block[:] = parts.read(end - begin) if own else merged[offsets[source] :][: end - begin]
        digest.update(block.data)
    merged.flush()
    return digest.hexdigest()


def _write_offsets(paths: Paths, places: _Places, new: Callable[[Path], Path]) -> dict[str, str]:
    """Write where each row's residues begin, and the last row's end; return name and digest."""
    path = new(paths.residue_offsets)
    with path.open("wb") as handle:
        np.save(handle, _offsets(places))
    return {paths.residue_offsets.name: file_digest(path)}


def _offsets(places: _Places) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(places.residues)))


def _begin_digest(path: Path, array: np.memmap) -> hashlib._Hash:
    """Return the digest of what stands before the numbers of an array in its file."""
    with path.open("rb") as handle:
        return hashlib.sha256(handle.read(array.offset))
