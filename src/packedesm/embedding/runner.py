"""Run packs through the model while the next are read and the last are written."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import torch

from packedesm.device.memory import out_of_memory
from packedesm.embedding.fallback import Fallback
from packedesm.embedding.lane import Collect, CpuLane, CudaLane, Embedded
from packedesm.embedding.pack import FinishedPack, PackStatistics, not_finite
from packedesm.embedding.pooling import pool
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedPlan
from packedesm.packing.batch import PackedBatch

IN_FLIGHT = 3  # one pack is copied in, one computed and one copied out and written


Sink = Callable[[FinishedPack], None]


class AsyncInferenceRunner:
    """Forward, pool and hand over one pack after another, with several in flight.

    On a GPU, three CUDA streams copy in, compute and copy out side by side, ordered by events;
    the host never waits for the device to launch the next pack. Vectors are handed to the sink in
    a thread of its own, in the order of the packs, on a CPU too.

    Parameters
    ----------
    model
        The model, on `device`.
    plan
        The attention backend, what is kept of each protein, and the tokens of a full pack.
    device
        Where packs are computed.
    fallback
        What helps a pack that does not fit into memory or whose vectors are not finite; without
        it, that is an error.
    """

    def __init__(
        self,
        model: PackedESM2,
        plan: EmbedPlan,
        device: torch.device,
        fallback: Fallback | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.fallback = fallback
        self._device = device
        self._lane = CudaLane(device) if device.type == "cuda" else CpuLane()

    def run(
        self,
        batches: Iterable[PackedBatch],
        sink: Sink,
        *,
        numbers: Iterable[int] | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        """Embed every pack of `batches`.

        Parameters
        ----------
        batches
            Packs on the host, best from `packedesm.packing.dataloader.create_async_dataloader`.
        sink
            Called with each finished pack, in order. Runs in another thread; what it raises is
            raised here.
        numbers
            The packs' numbers in the plan, for their statistics; default: from 0.
        seconds_before
            What ``finished_seconds`` counts from: the time that earlier attempts took.
        """
        start = time.perf_counter() - seconds_before
        waiting: deque[Future[None]] = deque()
        with torch.inference_mode(), ThreadPoolExecutor(1, "writer") as writer:
            source = iter(batches)
            numbers = count() if numbers is None else iter(numbers)
            while (timed := _timed_next(source)) is not None:
                batch, wait = timed
                if len(waiting) == IN_FLIGHT:
                    waiting.popleft().result()
                collect = self._launch(batch, waiting)
                task = (next(numbers), batch, wait, collect, sink, start)
                waiting.append(writer.submit(self._finish, *task))
            for future in waiting:
                future.result()

    def _launch(self, batch: PackedBatch, waiting: Iterable[Future[None]]) -> Collect:
        """Start a pack on the device, or embed it by halves if it does not fit."""
        tokens = sum(batch.lengths)
        if self.fallback is None:
            return self._lane.launch(batch, self._embed)
        if self.fallback.fits(tokens):
            try:
                return self._lane.launch(batch, self._embed)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Only now, outside the handler: the exception's traceback held the tensors.
            if len(batch.rows) > 1:
                self.fallback.lower(tokens)
        for future in waiting:
            future.result()
        embedded = self._split(batch, self.fallback)
        return lambda: embedded

    def _split(self, batch: PackedBatch, fallback: Fallback) -> Embedded:
        """Embed a pack by halves, down to single records, and wait for each."""
        tokens = sum(batch.lengths)
        if fallback.fits(tokens) or len(batch.rows) == 1:
            self._free_memory()
            try:
                return self._lane.launch(batch, self._embed)()
            except Exception as error:
                if not out_of_memory(error):
                    raise
            if len(batch.rows) == 1:
                self._free_memory()
                start = time.perf_counter()
                vectors = fallback.alone(batch)
                return Embedded(vectors, time.perf_counter() - start, 1, batch.rows)
            fallback.lower(tokens)
        return Embedded.join([self._split(half, fallback) for half in fallback.halves(batch)])

    def _free_memory(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _embed(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        hidden = self.model.forward_packed(**batch.inputs, attention=self.plan.attention)
        outputs, dtype = self.plan.outputs, self.plan.output_dtype
        return pool(hidden, batch, outputs, dtype, fused=self.plan.kernels != "torch")

    def _finish(
        self,
        pack: int,
        batch: PackedBatch,
        wait: float,
        collect: Collect,
        sink: Sink,
        start: float,
    ) -> None:
        embedded = collect()
        vectors, float32_rows = embedded.numpy(), embedded.float32_rows
        if self.fallback is not None and len(bad := not_finite(vectors, batch.residues)):
            vectors = Embedded(self.fallback.in_float32(batch, bad)).numpy()
            float32_rows = batch.rows
        tokens = sum(batch.lengths)
        statistics = PackStatistics(
            pack=pack,
            records=len(batch.rows),
            residues=int(batch.residues.sum()),
            tokens=tokens,
            fill=tokens / max(self.plan.token_budget, tokens),
            wait_seconds=wait,
            forward_seconds=embedded.seconds,
            finished_seconds=time.perf_counter() - start,
            splits=embedded.splits,
            float32_records=len(float32_rows),
        )
        sink(FinishedPack(statistics, batch.rows, batch.residues, vectors, float32_rows))


def _timed_next(source: Iterator[PackedBatch]) -> tuple[PackedBatch, float] | None:
    start = time.perf_counter()
    batch = next(source, None)
    return None if batch is None else (batch, time.perf_counter() - start)
