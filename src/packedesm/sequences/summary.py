"""``sharding.json``: what the input held, what the shards hold, and the digests of their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import listed, plural, quote
from packedesm.files import file_digest, read_record, reading, write_record
from packedesm.options import ShardOptions
from packedesm.paths import Paths
from packedesm.sequences.flags import FLAGS, NUCLEOTIDE_LIKE
from packedesm.sequences.partition import Partition
from packedesm.sequences.staging import Staging

_TRANSLATE = (
    "most records look like DNA or RNA, and ESM-2 reads proteins, so their vectors mean nothing: "
    "translate them first, for example with `seqkit translate` or EMBOSS transeq, or predict the "
    "genes of contigs with Prodigal"
)


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
    written = [paths.shard_index, paths.shard_skipped]
    for shard in range(plan.shards):
        written += paths.shard_files(shard)
    summary = {
        "records": len(staging.lengths),
        "unique": len(plan.rows),
        "skipped_empty": len(_skipped(staging)),
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
        "warnings": _warnings(paths, staging, repeats, policy.max_length),
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
            "masked_passes": int(plan.masked_passes[part].sum()),
            "masked_tokens": int(plan.masked_tokens[part].sum()),
            "cost": float(plan.costs[part].sum()),
        }
        for part in shards
    ]


def _warnings(paths: Paths, staging: Staging, repeats: int, max_length: int) -> list[str]:
    """Return one line for each way in which rows differ from what the input says."""
    records = len(staging.lengths)
    of = f"of {plural(records, 'record')}"
    mostly = 2 * staging.flags.get(NUCLEOTIDE_LIKE, 0) > records
    warnings = [_TRANSLATE] if mostly else []
    for flag, (_, one, several) in FLAGS.items():
        if one and (count := staging.flags.get(flag)):
            text = (one if count == 1 else several).format(max_length=max_length)
            examples = staging.examples.get(flag, [])
            named = f": {listed(map(quote, examples), count)}" if examples else ""
            warnings.append(f"{count:,} {of} {text} (flag {flag}){named}")
    if repeats:
        repeat = "repeats" if repeats == 1 else "repeat"
        warnings.append(f"{repeats:,} {of} {repeat} the id and sequence of an earlier one")
    if skipped := _skipped(staging):
        skip = "was skipped and has" if len(skipped) == 1 else "were skipped and have"
        warnings.append(
            f"{plural(len(skipped), 'record')} without residues {skip} no row: "
            f"{listed(map(quote, skipped), len(skipped))} (all are in {paths.skipped.name})"
        )
    return warnings


def _skipped(staging: Staging) -> list[str]:
    """Return the ids of the records that have no row."""
    return [skipped.id for source in staging.inputs for skipped in source.skipped]
