"""Run packs through the model while the next are read and the last are written."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import torch

from packedesm.device.memory import if_it_fits
from packedesm.embedding.lane import Collect, CpuLane, CudaLane, Embedded
from packedesm.embedding.pack import FinishedPack, PackStatistics
from packedesm.embedding.readout import Readout
from packedesm.embedding.writer import Writer
from packedesm.esm2.model import PackedESM2
from packedesm.options import EmbedPlan
from packedesm.packing.batch import PackedBatch

logger = logging.getLogger(__name__)

ON_GPU = 3  # packs on a GPU: one is copied in, one computed and one copied out

Sink = Callable[[FinishedPack], None]


class PackTooLarge(RuntimeError):
    """Memory does not hold a pack, with nothing beside it either.

    Attributes
    ----------
    number : int
        Of the pack.
    rows : int64 (R,)
        Which items of the job its records are.
    masked : bool
        Whether these are masked copies.
    tokens : int
        Its tokens.
    """

    def __init__(self, number: int, batch: PackedBatch) -> None:
        self.number = number
        self.rows = batch.rows
        self.masked = batch.masked
        self.tokens = sum(batch.lengths)
        super().__init__(f"out of memory with the {self.tokens} tokens of pack {number}")


class AsyncInferenceRunner:
    """Forward, pool and hand over one pack after another, with several in flight.

    On a GPU, three CUDA streams copy in, compute and copy out side by side, ordered by events;
    the host never waits for the device to launch the next pack. The calling thread alone talks to
    the device. Vectors are handed to the sink in a thread of its own, in the order of the packs, on
    a CPU too; while it waits for a disk the device goes on, until `WAITING_BYTES` are waiting.

    A pack that memory does not hold is tried once more when all before it have left the device.

    Parameters
    ----------
    model
        The model, on `device`.
    plan
        The attention backend, what is kept of each protein, and the tokens of a full pack.
    device
        Where packs are computed.
    """

    def __init__(self, model: PackedESM2, plan: EmbedPlan, device: torch.device) -> None:
        self.model = model
        self.plan = plan
        self.device = device
        on_gpu = device.type == "cuda"
        self._lane = CudaLane(device) if on_gpu else CpuLane()
        self.ahead = ON_GPU - 1 if on_gpu else 0  # packs in flight while the next is read

    def run(
        self,
        batches: Iterable[PackedBatch],
        sink: Sink,
        *,
        numbers: Iterable[int] | None = None,
        token_budget: int | None = None,
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
        token_budget
            What the packs were planned with, for their statistics; default: the plan's.
        seconds_before
            What ``finished_seconds`` counts from: the time that earlier attempts took.

        Raises
        ------
        PackTooLarge
            If memory does not hold a pack, at the second try either. All packs before it, and
            those that were on the device with it, have been handed over.
        """
        budget = self.plan.token_budget if token_budget is None else token_budget
        start = time.perf_counter() - seconds_before
        with torch.inference_mode(), Writer() as writer:
            run = _Run(self, writer, sink, start=start, token_budget=budget)
            too_large = run.through(iter(batches), count() if numbers is None else iter(numbers))
        if too_large is not None:
            raise PackTooLarge(too_large.number, too_large.batch)

    def release(self) -> None:
        """Let go of the model and its memory; the runner is of no use any more."""
        del self.model
        self.free_memory()

    def free_memory(self) -> None:
        """Give back what the device's allocator keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def launch(self, batch: PackedBatch) -> Collect:
        """Start a pack, and return a function that waits for what comes out and gives it."""
        return self._lane.launch(batch, Readout(self.model, self.plan).of)


@dataclass(frozen=True)
class _Pack:
    """A pack that was launched; without `collect`, one that memory did not hold."""

    number: int
    batch: PackedBatch
    wait_seconds: float
    collect: Collect | None


class _Run:
    """One call of `AsyncInferenceRunner.run`: what is in flight, and what is done with it."""

    def __init__(
        self,
        runner: AsyncInferenceRunner,
        writer: Writer,
        sink: Sink,
        *,
        start: float,
        token_budget: int,
    ) -> None:
        self._runner = runner
        self._writer = writer
        self._sink = sink
        self._start = start
        self._token_budget = token_budget
        self._in_flight: deque[_Pack] = deque()

    def through(self, batches: Iterator[PackedBatch], numbers: Iterator[int]) -> _Pack | None:
        """Embed all packs, or those up to one that memory does not hold, which is returned."""
        try:
            while (timed := _timed_next(batches)) is not None:
                batch, wait = timed
                collect = if_it_fits(partial(self._runner.launch, batch))
                self._in_flight.append(_Pack(next(numbers), batch, wait, collect))
                if (too_large := self._advance()) is not None:
                    return too_large
            return self._settle()
        except BaseException:
            with suppress(Exception):  # what is finished is kept; the first error is the one to say
                self._settle()
            raise

    def _advance(self) -> _Pack | None:
        """Wait for packs until so few are in flight that the next may be launched."""
        if self._in_flight[-1].collect is None:
            return self._settle()
        while len(self._in_flight) > self._runner.ahead:
            oldest = self._in_flight.popleft()
            embedded = _collected(oldest)
            if embedded is None:
                self._in_flight.appendleft(replace(oldest, collect=None))
                return self._settle()
            self._hand_over(oldest, embedded)
        return None

    def _settle(self) -> _Pack | None:
        """Wait for all packs in flight; try once more, alone, what memory did not hold.

        Returns the first that does not fit then either.
        """
        in_flight, too_large = list(self._in_flight), None
        self._in_flight.clear()
        for pack, embedded in [(pack, _collected(pack)) for pack in in_flight]:
            again = embedded is None
            if again:
                embedded = self._once_more(pack)
            if embedded is not None:
                self._hand_over(pack, embedded, passes=1 + again)
            elif too_large is None:
                too_large = pack
        return too_large

    def _once_more(self, pack: _Pack) -> Embedded | None:
        tokens = sum(pack.batch.lengths)
        logger.warning("out of memory with %d tokens: once more, with nothing beside them", tokens)
        self._runner.free_memory()
        return if_it_fits(lambda: self._runner.launch(pack.batch)())

    def _hand_over(self, pack: _Pack, embedded: Embedded, passes: int = 1) -> None:
        batch, tokens = pack.batch, _record_tokens(pack.batch)
        statistics = PackStatistics(
            pack=pack.number,
            records=len(batch.rows),
            residues=int(batch.residues.sum()),
            tokens=(total := int(tokens.sum())),
            token_budget=self._token_budget,
            fill=total / max(self._token_budget, total),
            wait_seconds=pack.wait_seconds,
            forward_seconds=embedded.seconds,
            finished_seconds=time.perf_counter() - self._start,
            passes=passes,
            deferred_records=0,
            float32_records=0,
            masked=int(batch.masked),
        )
        rows, residues, sink = batch.rows, batch.residues, self._sink

        def write() -> None:
            finished = FinishedPack(statistics, rows, residues, embedded.numpy(), rows[:0])
            sink(finished.defer(embedded.bad, tokens))

        size = sum(tensor.nbytes for tensor in embedded.vectors.values())
        self._writer.put(write, size)


def _collected(pack: _Pack) -> Embedded | None:
    """Wait for a pack and return what came out; None where memory did not suffice."""
    return None if pack.collect is None else if_it_fits(pack.collect)


def _record_tokens(batch: PackedBatch) -> np.ndarray:
    """Return the tokens of each record of a pack: int64 (R,)."""
    windows = batch.record_windows.numpy()
    return np.add.reduceat(np.array(batch.lengths), np.cumsum(windows) - windows)


def _timed_next(source: Iterator[PackedBatch]) -> tuple[PackedBatch, float] | None:
    start = time.perf_counter()
    batch = next(source, None)
    return None if batch is None else (batch, time.perf_counter() - start)
