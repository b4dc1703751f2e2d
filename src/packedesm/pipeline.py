"""The whole way from one FASTA file to published vectors, in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packedesm.config import JOB_OPTIONS, SHARD_OPTIONS, pick
from packedesm.embedding.job import embed_shard
from packedesm.embedding.output import finished
from packedesm.esm2.checkpoints import prepare
from packedesm.paths import Layout
from packedesm.report.metrics import write_metrics
from packedesm.report.page import write_report
from packedesm.report.verify import verify
from packedesm.results.manifest import write_manifest
from packedesm.results.merge import merge_shards
from packedesm.sequences.shards import write_shards

logger = logging.getLogger(__name__)


def embed_fasta(layout: Layout, config: Mapping[str, Any], threads: int) -> None:
    """Do for one FASTA file what the workflow's rules do, one shard after another.

    `config` is a resolved configuration whose ``fasta`` is one path. Raises what its steps raise.
    """
    # Only one device is used here, so more shards than asked for would gain nothing.
    shards = 1 if config["shards"] == "auto" else config["shards"]
    checkpoint = prepare(config["model"], config["checkpoints"], layout.checkpoint)
    options = pick(config, SHARD_OPTIONS)
    write_shards([Path(config["fasta"])], layout, shards, width=checkpoint["width"], **options)
    job = pick(config, JOB_OPTIONS)
    for shard in range(shards):
        if finished(layout, shard, checkpoint, config):
            logger.info("shard %d is finished and kept", shard)
        else:
            embed_shard(layout, shard, checkpoint, config, job, threads=threads)
    merge_shards(layout, shards, config["outputs"])
    verify(layout, layout.checkpoint, shards=shards, seed=config["seed"], **config["verify"])
    write_metrics(layout, shards)
    write_report(layout)
    write_manifest(layout, config)
