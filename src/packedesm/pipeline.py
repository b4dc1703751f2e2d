"""The whole way from one FASTA file to published vectors, in this process."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packedesm.checkpoints import prepare
from packedesm.config import JOB_OPTIONS, SHARD_OPTIONS, pick
from packedesm.embed import embed_shard
from packedesm.layout import Layout
from packedesm.manifest import write_manifest
from packedesm.metrics import write_metrics
from packedesm.published import finished
from packedesm.report import write_report
from packedesm.sharding import write_shards
from packedesm.store import merge_shards
from packedesm.verify import verify

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
