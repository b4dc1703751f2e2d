"""The whole way from FASTA files to results, in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packedesm.device.hardware import device_kind
from packedesm.embedding.job import embed_shard
from packedesm.embedding.output import expect_same_numbers, finished
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.registry import model_files
from packedesm.options import EmbedOptions, JobOptions, ShardOptions, VerifyOptions
from packedesm.paths import Paths
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.folder import adopt_request, start_over
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from packedesm.results.request import input_files
from packedesm.sequences.fasta import read_blocks
from packedesm.sequences.shards import write_shards

logger = logging.getLogger(__name__)


def embed_fasta(
    paths: Paths, config: Mapping[str, Any], threads: int, *, force: bool = False
) -> None:
    """Do for one sample what the workflow's rules do, one shard after another.

    Goes on where an earlier attempt of the same request was stopped. `config` is a resolved
    configuration whose ``fasta`` is the path, or a list of the paths, of this sample; `force`
    starts over. Raises what its steps raise, UserError if the folder holds an attempt of another
    request, and Fault if another kind of device has finished a part of it.
    """
    # Only one device is used here, so more shards than asked for would gain nothing.
    shards = 1 if config["shards"] == "auto" else config["shards"]
    fastas = input_files(config)
    checkpoint = prepare(config["model"], config["checkpoints"])
    if force:
        for fasta in fastas:
            next(read_blocks(fasta))  # what is there is not given up for a mistake
        start_over(paths)
    weights = model_files(Path(checkpoint.path))
    request = adopt_request(paths, config, weights, checkpoint.sha256)
    checkpoint.write(paths.checkpoint)
    width = checkpoint.geometry.width
    summary = write_shards(fastas, paths, ShardOptions.of(config), shards=shards, width=width)
    request.check_read([source["sha256"] for source in summary["inputs"]])
    options, job = EmbedOptions.of(config), JobOptions.of(config)
    kept = [finished(paths, shard, checkpoint, options) for shard in range(shards)]
    if None in kept and any(kept):
        expect_same_numbers(paths, kept, options, device_kind(job.device))
    for shard, run in enumerate(kept):
        if run is not None:
            logger.info("shard %d is finished and kept", shard)
        else:
            embed_shard(paths, shard, checkpoint, options, job, threads=threads)
    merge_shards(paths, shards, options.outputs)
    verify(paths, checkpoint, VerifyOptions.of(config), shards=shards)
    write_metrics(paths, shards)
    write_report(paths)
    write_manifest(paths, config, request)
