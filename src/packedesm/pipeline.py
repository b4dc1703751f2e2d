"""The whole way from one FASTA file to results, in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packedesm.embedding.job import embed_shard
from packedesm.embedding.output import finished
from packedesm.esm2.checkpoints import prepare
from packedesm.options import EmbedOptions, JobOptions, ShardOptions, VerifyOptions
from packedesm.paths import Paths
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from packedesm.sequences.shards import write_shards

logger = logging.getLogger(__name__)


def embed_fasta(paths: Paths, config: Mapping[str, Any], threads: int) -> None:
    """Do for one FASTA file what the workflow's rules do, one shard after another.

    `config` is a resolved configuration whose ``fasta`` is one path. Raises what its steps raise.
    """
    # Only one device is used here, so more shards than asked for would gain nothing.
    shards = 1 if config["shards"] == "auto" else config["shards"]
    checkpoint = prepare(config["model"], config["checkpoints"], paths.checkpoint)
    fasta, width = Path(config["fasta"]), checkpoint.geometry.width
    write_shards([fasta], paths, ShardOptions.of(config), shards=shards, width=width)
    options, job = EmbedOptions.of(config), JobOptions.of(config)
    for shard in range(shards):
        if finished(paths, shard, checkpoint, options):
            logger.info("shard %d is finished and kept", shard)
        else:
            embed_shard(paths, shard, checkpoint, options, job, threads=threads)
    merge_shards(paths, shards, options.outputs)
    verify(paths, checkpoint, VerifyOptions.of(config), shards=shards)
    write_metrics(paths, shards)
    write_report(paths)
    write_manifest(paths, config)
