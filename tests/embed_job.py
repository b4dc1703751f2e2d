"""One embedding job in a process of its own, as the workflow's script runs it.

    python -m tests.embed_job JOB.json

The JSON holds root, shard, options, job, threads, log and the faults to inject.
"""

import sys
import time
from pathlib import Path

import torch

from packedesm import files
from packedesm.embedding.job import embed_shard
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import Checkpoint
from packedesm.files import read_json
from packedesm.log import job_log
from packedesm.options import EmbedOptions, JobOptions
from packedesm.packing import dataloader
from packedesm.paths import Paths


def inject(
    memory: int | None = None,
    nan: int | None = None,
    patience: float | None = None,
    unchecked: str | None = None,
    slow: float = 0,
):
    """Make the device hold `memory` tokens, half precision fail on proteins of `nan` tokens.

    And a digest of the file `unchecked` always count as right, and each pack take `slow` seconds.
    """
    same = files._same
    files._same = lambda path, *pair: str(path) == unchecked or same(path, *pair)
    forward = PackedESM2.forward_packed

    def faulty(self, input_ids, positions, cu_seqlens, *arguments, **options):
        if memory is not None and len(input_ids) > memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        time.sleep(slow)
        hidden = forward(self, input_ids, positions, cu_seqlens, *arguments, **options)
        if nan is not None and hidden.dtype != torch.float32:
            lengths = cu_seqlens.diff()
            hidden[(lengths == nan).repeat_interleave(lengths)] = torch.nan
        return hidden

    PackedESM2.forward_packed = faulty
    if patience is not None:
        dataloader.create_async_dataloader.__kwdefaults__["patience"] = patience


def run(path: Path) -> None:
    """Run the job that `path` describes, in a process that does nothing else."""
    task = read_json(path)
    paths = Paths(task["root"])
    inject(**task["faults"])
    with job_log(task["log"]):
        embed_shard(
            paths,
            task["shard"],
            Checkpoint.read(paths.checkpoint),
            EmbedOptions.of(task["options"]),
            JobOptions.of(task["job"]),
            threads=task["threads"],
        )


if __name__ == "__main__":
    run(Path(sys.argv[1]))
