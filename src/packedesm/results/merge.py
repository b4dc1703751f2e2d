"""The shards' arrays merged in input order, a row for every record; written atomically."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import atomic_path, create_npy, file_digest, write_record
from packedesm.outputs import RECORD, Array
from packedesm.paths import Paths
from packedesm.results.exports.record import remove_exports
from packedesm.results.index_file import index_columns
from packedesm.results.letters import write_letters
from packedesm.results.parts import Parts
from packedesm.sequences.arrow import to_numpy
from packedesm.sequences.index import embedded_as, write_flagged
from packedesm.sequences.summary import read_summary, reading_sharded, written_digest

logger = logging.getLogger(__name__)

_BYTES_AT_ONCE = 1 << 24  # of an array that are held in memory while merging


class _Places(NamedTuple):
    """Where vectors come from, per row of the input."""

    own: np.ndarray  # bool (N,), its vector is the next one of the shards
    source: np.ndarray  # int64 (N,), else it has that of this earlier row
    residues: np.ndarray  # int64 (N,), that are embedded


def merge_shards(paths: Paths, shards: int, arrays: Sequence[str]) -> None:
    """Concatenate the shards' arrays in input order, the lines of every input record.

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
            for array in map(Array.named, arrays):
                with Parts(_arrays(paths, runs, array.name)) as parts:
                    path = paths.array(array.name)
                    lines = array.lines(places.residues)
                    if array.per == RECORD:
                        digests[path.name] = _write_rows(new(path), parts, places)
                    else:
                        digests[path.name] = _write_lines(new(path), parts, places, lines)
                    parts.finish(array.name)
                if (offsets := paths.offsets(array.per)) and offsets.name not in digests:
                    digests[offsets.name] = _write_offsets(new(offsets), lines)
            letters = paths.residue_letters
            if letters in paths.arrays(arrays):
                where = _offsets(places.residues), places.source
                digests[letters.name] = write_letters(new(letters), paths, summary, *where)
            index = new(paths.index)
            write_flagged(index, paths.shard_index, [n for run in runs for n in run.float32_rows])
            digests[paths.index.name] = file_digest(index)
        with reading_sharded(paths, paths.shard_skipped, summary=summary):
            skipped = new(paths.skipped)
            shutil.copyfile(paths.shard_skipped, skipped)
            digests[paths.skipped.name] = file_digest(skipped)
        _retire(paths, arrays)
    made_from = [run.record_sha256 for run in runs]
    write_record(paths.merging, {"sha256": digests, "made_from": made_from})
    write_record(paths.merging_seconds, {"seconds": time.perf_counter() - start})


def _retire(paths: Paths, arrays: Sequence[str]) -> None:
    """Remove what says that the results are finished, and arrays that would not be of this run."""
    paths.manifest.unlink(missing_ok=True)
    remove_exports(paths)
    others = {path for path in paths.results() if path.suffix == ".npy"} - {*paths.arrays(arrays)}
    for path in sorted(others):
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


def _arrays(paths: Paths, runs: list[ShardRun], name: str) -> dict[Path, str]:
    for run in runs:
        if name not in run.arrays_sha256:
            raise Fault(
                f"{paths.shard_run(run.shard)}: is of a job that did not make {name}; "
                "delete it and run again"
            )
    return {paths.shard_array(run.shard, name): run.arrays_sha256[name] for run in runs}


def _places(paths: Paths) -> _Places:
    index = index_columns(paths.shard_index, ["row", "embedded_length", "duplicate_of"])
    source = to_numpy(embedded_as(index))
    residues = to_numpy(index["embedded_length"]).astype(np.int64)
    return _Places(source == to_numpy(index["row"]), source, residues)


def _expect_one_kind(paths: Paths, runs: list[ShardRun]) -> None:
    first = runs[0]
    for run in runs:
        where = paths.shard_run(run.shard)
        for what in ("dtype", "float_products", "output_dtype", "arrays"):
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
    """Write the one line of each row; return the digest of the file."""
    merged = create_npy(path, (len(places.own), *parts.line), parts.dtype.str)
    digest = _begin_digest(path, merged)
    at_once = max(1, _BYTES_AT_ONCE // (merged.itemsize * prod(parts.line)))
    for begin in range(0, len(merged), at_once):
        rows = slice(begin, begin + at_once)
        block, own = merged[rows], places.own[rows]
        block[own] = parts.read(int(own.sum()))
        block[~own] = merged[places.source[rows][~own]]
        digest.update(block.data)
    merged.flush()
    return digest.hexdigest()


def _write_lines(path: Path, parts: Parts, places: _Places, lines: np.ndarray) -> str:
    """Write the `lines` (N,) of all rows, one row after another; return the digest of the file."""
    offsets = _offsets(lines)
    merged = create_npy(path, (int(offsets[-1]), *parts.line), parts.dtype.str)
    digest = _begin_digest(path, merged)
    bounds = pairwise(offsets.tolist())
    for own, source, (begin, end) in zip(places.own, places.source, bounds, strict=True):
        block = merged[begin:end]
        block[:] = parts.read(end - begin) if own else merged[offsets[source] :][: end - begin]
        digest.update(block.data)
    merged.flush()
    return digest.hexdigest()


def _write_offsets(path: Path, lines: np.ndarray) -> str:
    """Write where each row's lines begin, and the last row's end; return the file's digest."""
    with path.open("wb") as handle:
        np.save(handle, _offsets(lines))
    return file_digest(path)


def _offsets(lines: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lines)))


def _begin_digest(path: Path, array: np.memmap) -> hashlib._Hash:
    """Return the digest of what stands before the numbers of an array in its file."""
    with path.open("rb") as handle:
        return hashlib.sha256(handle.read(array.offset))
