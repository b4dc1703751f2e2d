"""Records in memory to arrays in memory, by the way that a job takes with those of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from packedesm.device.precision import fixed_precision
from packedesm.embedding.fallback import Fallback, Means
from packedesm.embedding.feed import Feed, FromFeed
from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.placing import ShardWriter
from packedesm.embedding.replan import PackPlan
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.embedding.workload import workload
from packedesm.notebook.embeddings import Embeddings
from packedesm.options import EmbedOptions, JobOptions
from packedesm.outputs import Array
from packedesm.packing.dataset import MemoryDataset
from packedesm.packing.packer import plan_packs
from packedesm.progress import Progress, telling

if TYPE_CHECKING:
    from packedesm.notebook.model import EmbeddingModel
    from packedesm.sequences.records import Records

# Whether a bar is drawn, or what is told how many residues are done.
Show = bool | Callable[[int], None]

_DELAY = 1.0  # seconds; shorter work shows no bar


def embed_records(
    model: EmbeddingModel,
    records: Records,
    options: EmbedOptions,
    job: JobOptions,
    progress: Show = True,
) -> Embeddings:
    """Embed records, each sequence once, and return the arrays that are asked for.

    Packs are planned, collated, computed and pooled, and what does not go so is done otherwise, as
    in `packedesm.embedding.job`; here nothing is kept for another attempt.

    Raises
    ------
    UserError
        If the options do not fit model or device.
    Fault
        As `packedesm.embedding.fallback.Fallback`.
    """
    unique = records.unique
    sequences = [records.sequences[row] for row in unique.tolist()]
    dataset = MemoryDataset(unique, sequences, options.length)
    plan = model.plan(options, workload(dataset))
    residues = dataset.embedded_lengths
    arrays = {}
    for array in map(Array.named, plan.arrays):
        shape = (int(array.lines(residues).sum()), *array.line(model.geometry.width))
        arrays[array.name] = np.empty(shape, array.dtype(plan.output_dtype))
    writer = ShardWriter(arrays, residues)
    packs = PackPlan(dataset.tokens, plan_packs(dataset.tokens, plan.token_budget))
    float32_rows: list[int] = []
    means = Means(
        embed=FromFeed(Feed(dataset, packs, job, check_stop=lambda: None)),
        tokens=dataset.tokens,
        load_float32=model.in_float32,
        name=lambda place: records.name(int(dataset.rows[place])),
        remember=lambda _replans: None,
    )
    with (
        _shown(progress),
        on(model.device),
        Progress("embedding", int(residues.sum()), "residues", delay=_DELAY) as bar,
    ):

        def sink(pack: FinishedPack) -> None:
            writer.write(pack)
            if pack.statistics.float32_records:
                float32_rows.extend(dataset.rows[pack.rows].tolist())
            bar.add(pack.statistics.residues)

        runner = AsyncInferenceRunner(model.computing(plan), plan, model.device)
        Fallback(means, packs, sink).run(runner)
    writer.close()
    return Embeddings(records, model.checkpoint, plan, arrays, sorted(float32_rows))


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Compute on a device as jobs do; afterwards torch is as it was."""
    with fixed_precision(device):
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device):
            yield


@contextmanager
def _shown(progress: Show) -> Iterator[None]:
    if progress is True:
        yield
        return
    with telling(progress or (lambda _done: None)):
        yield
