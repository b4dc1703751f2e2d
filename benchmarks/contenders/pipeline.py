"""packedesm from a FASTA file to merged arrays: shard, embed, commit, merge.

What does not grow with the input counts apart: loading the weights, measuring the matmul
peak. The steps after merging (verification, report) are left out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders.base import Contender, Task
from packedesm.config import resolve, with_arrays
from packedesm.embedding.job import embed_shard
from packedesm.esm2.checkpoints import prepare
from packedesm.options import EmbedOptions, JobOptions, ReferenceOptions, ShardOptions
from packedesm.paths import Paths
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import FIRST
from packedesm.results.merge import merge_shards
from packedesm.sequences.shards import write_shards


def load(task: Task, dtype: str) -> Pipeline:
    """Record the checkpoint; each run loads it anew."""
    return Pipeline(task, dtype)


class Pipeline(Contender):
    """The steps of `packedesm embed`, in this process."""

    packages = ("torch", "packedesm")

    def __init__(self, task: Task, dtype: str) -> None:
        self.task, self.dtype = task, dtype
        self.paths = Paths(task.scratch / "results")
        self.checkpoint = prepare(str(task.checkpoint), task.checkpoint.parent)

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Write the FASTA file, which is the input."""
        fasta = Path(self.task.scratch / "input.fasta")
        fasta.write_text("".join(f">{row}\n{s}\n" for row, s in enumerate(sequences)))
        config = {
            "fasta": str(fasta),
            "model": str(self.task.checkpoint),
            "dtype": self.dtype,
            "output_dtype": "float32",
            "token_budget": budget,
            "verify": {"sequences": 0},
            "deduplicate": False,  # a sample larger than its file repeats records
        }
        self.config = with_arrays(resolve(config), self.checkpoint.geometry.layers)

    def embed(self) -> np.ndarray:
        """Run the steps into an empty folder."""
        shutil.rmtree(self.paths.root, ignore_errors=True)
        config, paths = self.config, self.paths
        width = self.checkpoint.geometry.width
        write_shards([Path(config["fasta"])], paths, ShardOptions.of(config), shards=1, width=width)
        reference = ReferenceOptions.of(config)  # of no record: there is nothing to compare
        write_reference(paths, self.checkpoint, reference, FIRST, shards=1)
        options, job = EmbedOptions.of(config), JobOptions.of(config)
        run = embed_shard(paths, 0, self.checkpoint, options, job, threads=self.task.threads)
        merge_shards(paths, 1, options.arrays)
        self.apart = run.seconds.setup
        return np.load(paths.array("mean"))
