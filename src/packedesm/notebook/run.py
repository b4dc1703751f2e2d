"""Records in memory to arrays in memory, by the way that a job takes with those of a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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
from packedesm.errors import UserError
from packedesm.notebook.embeddings import Embeddings
from packedesm.options import EmbedOptions, EmbedPlan, JobOptions
from packedesm.outputs import Array, heads_of
from packedesm.packing.dataset import MemoryDataset
from packedesm.packing.items import Items
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
    items = Items.of(dataset, options.arrays)
    plan = model.plan(options, workload(items))
    arrays = _room(plan, dataset.embedded_lengths, model.geometry.width)
    writer = ShardWriter(arrays, dataset.embedded_lengths)
    packs = PackPlan(items.tokens, items.plan(plan.token_budget), records=items.records)
    means = Means(
        embed=FromFeed(Feed(items, packs, job, check_stop=lambda: None)),
        tokens=items.tokens,
        load_float32=partial(model.in_float32, heads=heads_of(plan.arrays)),
        name=partial(_name, records, items),
        remember=lambda _replans: None,
    )
    float32_rows: set[int] = set()
    with (
        _shown(progress),
        on(model.device),
        Progress("embedding", items.passed, "residues", delay=_DELAY) as bar,
    ):

        def sink(pack: FinishedPack) -> None:
            writer.write(pack)
            if pack.statistics.float32_records:
                float32_rows.update(dataset.rows[items.records_of(pack.rows)].tolist())
            bar.add(pack.statistics.passed)

        runner = AsyncInferenceRunner(model.computing(plan), plan, model.device)
        Fallback(means, packs, sink).run(runner)
    writer.close()
    return Embeddings(records, model.checkpoint, plan, arrays, sorted(float32_rows))


def _room(plan: EmbedPlan, residues: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """Return the arrays of a plan, still empty, for records of so many embedded residues."""
    room = {}
    for array in map(Array.named, plan.arrays):
        shape = (int(array.lines(residues).sum()), *array.line(width))
        room[array.name] = np.empty(shape, array.dtype(plan.output_dtype))
    return room


def _name(records: Records, items: Items, item: int) -> str:
    """Return what the user calls an item that goes through the model."""
    (place,) = items.records_of(np.array([item]))
    return records.name(int(items.dataset.rows[place]))


@contextmanager
def on(device: torch.device) -> Iterator[None]:
    """Compute in the block on a device, as jobs do; after it torch is as it was."""
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
    if progress and not callable(progress):
        raise UserError(f"progress: {progress!r} is neither true, false nor a function")
    with telling(progress or (lambda _done: None)):
        yield
