"""Which steps of the workflow were given something else than is asked for now, by their records.

Snakemake knows what a step was given from its own folder ``.snakemake``, which may be gone, or that
of another project that shares the results.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from packedesm.embedding.record import ShardRun
from packedesm.errors import Fault
from packedesm.files import combined, file_digest, read_record
from packedesm.options import (
    EmbedOptions,
    ReferenceOptions,
    ReportOptions,
    ShardOptions,
    VerifyOptions,
)
from packedesm.outputs import CONTACT_HEAD
from packedesm.paths import Paths
from packedesm.reference.vectors import PARTS
from packedesm.results.inputs import MISSING, digests_of


def outdated_checkpoint(
    run: Paths, model: str, weights: Sequence[str], needs: Collection[str] = ()
) -> list[Path]:
    """Return the record of the checkpoint if it is that of another one.

    Parameters
    ----------
    run
        The folder of all samples.
    model, weights
        As the user names it, and what `packedesm.results.inputs.describe` says of its files; empty
        where the user names none.
    needs
        The heads that it must have, see `packedesm.outputs.needs`: of a model that has a name, the
        regression of its contact head is among the files that were read if contacts are asked for.
    """
    found = _record(run.checkpoint)
    if found is None:
        return []
    if not weights and (CONTACT_HEAD in needs) != (found.get("regression") is not None):
        return [run.checkpoint]
    known = weights and MISSING not in weights
    digest = combined(digests_of(weights)) if known else found["sha256"]
    return [] if (found["model"], found["sha256"]) == (model, digest) else [run.checkpoint]


def outdated_steps(
    run: Paths,
    paths: Paths,
    config: Mapping[str, Any],
    inputs: Sequence[str],
    shards: int,
    table: str = MISSING,
) -> list[Path]:
    """Return those records of a sample's steps whose step was given something else.

    Parameters
    ----------
    run, paths
        The folder of all samples, and that of this one.
    config, shards
        The resolved configuration, and the number of shards.
    inputs
        What `packedesm.results.inputs.describe` says of the sample's FASTA files.
    table
        And of the table of annotations, if there is one.
    """
    found = []
    if _record(paths.sharding) and kept_number(paths, config, inputs) != shards:
        found.append(paths.sharding)
    checkpoint, embed = _record(run.checkpoint), EmbedOptions.of(config)
    for shard in range(shards):
        try:
            job = ShardRun.read(paths.shard_run(shard))
        except (FileNotFoundError, Fault):  # the next step says what is wrong with it
            continue
        others = checkpoint is not None and job.checkpoint.sha256 != checkpoint["sha256"]
        if others or job.options != embed:
            found.append(paths.shard_run(shard))
    reference = ReferenceOptions.part(config)
    if checkpoint is not None:
        reference["checkpoint_sha256"] = checkpoint["sha256"]
    for part in PARTS:
        facts = _record(paths.reference(part))
        if facts and not reference.items() <= facts["asked"].items():
            found.append(paths.reference(part))
    verify = VerifyOptions.part(config)
    verification = _record(paths.verification)
    if verification and verification.get("options", verify) != verify:
        found.append(paths.verification)
    metrics = _record(paths.metrics)
    if metrics and _changed(paths, metrics):
        found.append(paths.metrics)
    reporting = _record(paths.reporting)
    if reporting and (
        _otherwise_reported(reporting, ReportOptions.part(config), table)
        or _changed(paths, reporting)
    ):
        found.append(paths.reporting)
    return found


def gone_results(paths: Paths, config: Mapping[str, Any]) -> list[Path]:
    """Return the files that finished results shall have and have not.

    Snakemake looks for the last of them alone, the manifest.

    Parameters
    ----------
    config
        The resolved configuration with its arrays, see `packedesm.config.with_arrays`.
    """
    if not paths.manifest.exists():
        return []
    merged = [*paths.arrays(config["arrays"]), paths.index, paths.skipped]
    told = [paths.metrics, paths.packing, paths.throughput, paths.verification, *paths.drawn()]
    return [path for path in (*merged, *told) if not path.exists()]


def embedded_as(paths: Paths, shard: int, config: Mapping[str, Any]) -> bool:
    """Tell whether a shard was embedded with the options of a configuration."""
    try:
        return ShardRun.read(paths.shard_run(shard)).options == EmbedOptions.of(config)
    except (FileNotFoundError, Fault):
        return False


def kept_number(paths: Paths, config: Mapping[str, Any], inputs: Sequence[str]) -> int | None:
    """Return the number of shards that a sample has, or None if they are to be made anew.

    Parameters as those of `outdated_steps`, whatever number is asked for now.
    """
    sharding = _record(paths.sharding)
    if not sharding:
        return None
    options = ShardOptions.part(config)
    read = [source["sha256"] for source in sharding["inputs"]]
    was = {key: sharding.get(key, value) for key, value in options.items()}
    # What is not there may have been for this step alone: whether it must be is for others to say.
    now = [
        before if line == MISSING else digest
        for before, line, digest in zip_longest(read, inputs, digests_of(inputs))
    ]
    return len(sharding["shards"]) if (read, was) == (now, options) else None


def _otherwise_reported(reporting: Mapping[str, Any], options: Any, table: str) -> bool:
    """Tell whether a report was asked for otherwise, or its table was another one."""
    read = reporting.get("table")
    other = table != MISSING and read is not None and digests_of([table]) != [read]
    return other or reporting.get("options", options) != options


def _changed(paths: Paths, record: Mapping[str, Any]) -> bool:
    """Tell whether a small file is gone, or not as the step wrote it whose record this is."""
    written = {paths.root / name: sha256 for name, sha256 in record.get("sha256", {}).items()}
    return any(not path.is_file() or file_digest(path) != written[path] for path in written)


def _record(path: Path) -> dict[str, Any] | None:
    try:
        return read_record(path)
    except (FileNotFoundError, Fault):  # the step that reads it says what is wrong with it
        return None
