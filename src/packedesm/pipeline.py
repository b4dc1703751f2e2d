"""The whole way from FASTA files to results, by this process or one on each device."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from packedesm.cluster import shards_for
from packedesm.config import with_arrays
from packedesm.device.places import Place, anywhere, find_places
from packedesm.embedding.job import embed_shard
from packedesm.embedding.output import expect_same_numbers, finished
from packedesm.embedding.pool import embed_shards
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.registry import Checkpoint
from packedesm.options import (
    SPECIAL_TOKENS,
    EmbedOptions,
    JobOptions,
    ReferenceOptions,
    ReportOptions,
    ShardOptions,
    VerifyOptions,
)
from packedesm.outputs import Array, needs
from packedesm.paths import Paths
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import FIRST, REST
from packedesm.report.annotations import check_shown
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.exports.configured import add_missing, expect_installed, expect_possible
from packedesm.results.folder import adopt_request, start_over
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from packedesm.results.outdated import kept_number
from packedesm.results.request import input_files
from packedesm.sequences.fasta import read_blocks
from packedesm.sequences.partition import Number
from packedesm.sequences.shards import write_shards

logger = logging.getLogger(__name__)


def embed_fasta(
    paths: Paths,
    config: Mapping[str, Any],
    threads: int,
    *,
    force: bool = False,
    devices: str | None = None,
) -> None:
    """Do for one sample what the workflow's rules do.

    Goes on where an earlier attempt of the same request was stopped. Raises what its steps raise,
    UserError if the folder holds an attempt of another request or `devices` are not there, and
    Fault if another kind of device has finished a part of it.

    Parameters
    ----------
    config
        A resolved configuration whose ``fasta`` is the path, or a list of the paths, of the sample.
    threads
        CPU threads to use, in all processes together.
    force
        Start over.
    devices
        Which devices to use, as `find_places` takes them; default: all that `config` allows.
    """
    expect_possible(config["exports"], config["outputs"])
    expect_installed(config["exports"])
    shown = ReportOptions.of(config)
    check_shown(shown)
    places = find_places(config["device"], devices)
    fastas = input_files(config)
    checkpoint = prepare(config["model"], config["checkpoints"], needs(config["outputs"]))
    options = with_arrays(config, checkpoint.geometry.layers)
    if force:
        for fasta in fastas:
            next(read_blocks(fasta))  # what is there is not given up for a mistake
        start_over(paths)
    request = adopt_request(paths, config, checkpoint.files(), checkpoint.sha256)
    checkpoint.write(paths.checkpoint)
    width = checkpoint.geometry.width
    known = [source.in_words() for source in request.inputs]
    number = _number_of_shards(config, kept_number(paths, config, known), checkpoint, places)
    summary = write_shards(fastas, paths, ShardOptions.of(config), shards=number, width=width)
    request.check_read([source["sha256"] for source in summary["inputs"]])
    shards, reference = len(summary["shards"]), ReferenceOptions.of(options)
    write_reference(paths, checkpoint, reference, FIRST, shards=shards)
    _embed(paths, options, checkpoint, summary, places, threads)
    merge_shards(paths, shards, options["arrays"])
    write_reference(paths, checkpoint, reference, REST, shards=shards)
    verify(paths, VerifyOptions.of(config), shards=shards)
    write_metrics(paths, shards)
    write_report(paths, shown)
    write_manifest(paths, config, request)
    add_missing(paths.root, config["exports"])


def _number_of_shards(
    config: Mapping[str, Any], kept: int | None, checkpoint: Checkpoint, places: list[Place]
) -> Number:
    """Return the number of shards; what ``auto`` was stands, whatever devices there are now."""
    if config["shards"] != "auto":
        return config["shards"]
    if kept is None and len(places) > 1:
        return lambda cost: shards_for(checkpoint, cost, len(places), places[0].kind)
    return kept or 1


def _embed(
    paths: Paths,
    config: Mapping[str, Any],
    checkpoint: Checkpoint,
    summary: Mapping[str, Any],
    places: list[Place],
    threads: int,
) -> None:
    """Embed the shards that are not finished; several processes begin with the costliest."""
    shards, options = summary["shards"], EmbedOptions.of(config)
    kept = [finished(paths, shard, checkpoint, options) for shard in range(len(shards))]
    if None in kept and any(kept):
        expect_same_numbers(paths, kept, options, places[0].kind)
    for shard in (shard for shard, run in enumerate(kept) if run is not None):
        logger.info("shard %d is finished and kept", shard)
    todo = [shard for shard, run in enumerate(kept) if run is None]
    processes = max(1, min(len(places), len(todo)))
    embed = partial(
        embed_shard,
        paths,
        checkpoint=checkpoint,
        options=options,
        job=replace(JobOptions.of(config), device=anywhere(places)),
        threads=max(1, threads // processes),
    )
    if processes == 1:
        for shard in todo:
            embed(shard)
        return
    todo.sort(key=lambda shard: -shards[shard]["cost"])
    masked = {Array.named(name).masked for name in options.arrays}
    residues = sum(_passed(shard, unmasked=False in masked) for shard in shards)
    before = sum(_passed(vars(run)) for run in kept if run is not None)
    embed_shards(embed, todo, places, residues=residues, before=before)


def _passed(shard: Mapping[str, Any], *, unmasked: bool = True) -> int:
    """Return the residues of a shard that go through the model, see `PackStatistics.passed`."""
    copies = shard["masked_tokens"] - SPECIAL_TOKENS * shard["masked_passes"]
    return int(shard["residues"]) * unmasked + copies
