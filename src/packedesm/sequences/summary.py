"""``sharding.json``: what the input held, what the shards hold, and the digests of their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import plural
from packedesm.files import file_digest, read_record, reading, write_record
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.sequences.partition import Partition
from packedesm.sequences.staging import Staging

_STOP = "a stop (*) inside the sequence, which is embedded as X"
_J = "J (leucine or isoleucine), which ESM-2 does not know, embedded as X"
# What is said of one record, and of several, by flag.
_WARNINGS = {
    "truncated": (
        "is longer than {max_length:,} residues and is cut there",
        "are longer than {max_length:,} residues and are cut there",
    ),
    "stop_replaced": (f"holds {_STOP}", f"hold {_STOP}"),
    "j_replaced": (f"holds {_J}", f"hold {_J}"),
    "header_latin1": (
        "has a header that is not UTF-8, read as Latin-1",
        "have a header that is not UTF-8, read as Latin-1",
    ),
}


def write_summary(
    paths: Paths, staging: Staging, plan: Partition, options: ShardOptions, repeats: int
) -> dict[str, Any]:
    """Write `paths.sharding` and return its content.

    Counts, flags, inputs, shards, warnings, the options, and the digests of the files for
    `reading_sharded`. ``unique`` counts records in shards; embedded residues are those left after
    truncation.

    Parameters
    ----------
    repeats
        Records that repeat both the id and the sequence of an earlier one.
    """
    policy = options.length
    embedded = policy.embedded(staging.lengths)
    residues = embedded[plan.rows]
    shards = len(plan.bounds) - 1
    written = [paths.shard_index]
    for shard in range(shards):
        written += paths.shard_files(shard)
    summary = {
        "records": len(staging.lengths),
        "unique": len(plan.rows),
        "skipped_empty": sum(len(source.skipped) for source in staging.inputs),
        "residues": int(staging.lengths.sum()),
        "embedded_residues": int(embedded.sum()),
        "unique_residues": int(residues.sum()),
        "flags": staging.flags,
        "inputs": [
            {
                "path": str(source.path),
                "bytes": source.bytes,
                "records": source.records,
                "sha256": source.digest.hexdigest(),
            }
            for source in staging.inputs
        ],
        "shards": _summarise_shards(plan, residues),
        **options.as_config(),
        "warnings": _warnings(staging, repeats, policy.max_length),
        "sha256": {_name(paths, path): file_digest(path) for path in written},
    }
    write_record(paths.sharding, summary)
    return summary


def read_summary(paths: Paths) -> dict[str, Any]:
    """Return the content of `paths.sharding`; Damaged if it is not as it was written."""
    return read_record(paths.sharding)


def written_digest(summary: Mapping[str, Any], paths: Paths, path: Path) -> str:
    """Return the digest that one of the files that `write_shards` wrote had when it was written."""
    return summary["sha256"][_name(paths, path)]


@contextmanager
def reading_sharded(
    paths: Paths, *files: Path, summary: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Let the block read files that `write_shards` wrote; they are checked as in `reading`.

    `summary` is what `read_summary` gave, where the step has it already.
    """
    summary = summary or read_summary(paths)
    with ExitStack() as stack:
        for path in files:
            stack.enter_context(reading(path, sha256=written_digest(summary, paths, path)))
        yield


def _name(paths: Paths, path: Path) -> str:
    return path.relative_to(paths.work).as_posix()


def _summarise_shards(plan: Partition, residues: np.ndarray) -> list[dict[str, Any]]:
    """Return what each shard holds; `residues` are those embedded of each record, int64 (U,)."""
    shards = [slice(start, stop) for start, stop in pairwise(plan.bounds.tolist())]
    return [
        {
            "records": part.stop - part.start,
            "residues": int(residues[part].sum()),
            "tokens": int(plan.tokens[part].sum()),
            "cost": float(plan.costs[part].sum()),
        }
        for part in shards
    ]


def _warnings(staging: Staging, repeats: int, max_length: int) -> list[str]:
    """Return one line for each way in which rows differ from what the input says."""
    of = f"of {plural(len(staging.lengths), 'record')}"
    warnings = []
    for flag, (one, several) in _WARNINGS.items():
        if count := staging.flags.get(flag):
            text = (one if count == 1 else several).format(max_length=max_length)
            warnings.append(f"{count:,} {of} {text} (flag {flag})")
    if repeats:
        repeat = "repeats" if repeats == 1 else "repeat"
        warnings.append(f"{repeats:,} {of} {repeat} the id and sequence of an earlier one")
    if skipped := sum(len(source.skipped) for source in staging.inputs):
        skip = "was skipped and has" if skipped == 1 else "were skipped and have"
        warnings.append(f"{plural(skipped, 'record')} without residues {skip} no row")
    return warnings
