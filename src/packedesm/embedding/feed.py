"""The packs that a job has still to do, read and collated ahead of the device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.replan import PackPlan
from packedesm.embedding.runner import AsyncInferenceRunner, Sink
from packedesm.errors import Damaged
from packedesm.options import JobOptions
from packedesm.packing.batch import PackedBatch
from packedesm.packing.dataloader import create_async_dataloader, worker_lost
from packedesm.packing.items import Items

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feed:
    """Where the packs of a job come from."""

    items: Items
    packs: PackPlan
    job: JobOptions
    check_stop: Callable[[], None]  # raises if the job is to stop

    @contextmanager
    def batches(
        self, todo: Sequence[int], *, in_process: bool = False
    ) -> Iterator[Iterator[PackedBatch]]:
        """Give the batches of the packs `todo`; no worker process outlives the block.

        Parameters
        ----------
        in_process
            Start no workers: this process reads and collates.
        """
        loader = create_async_dataloader(
            self.items,
            [self.packs[number] for number in todo],
            workers=0 if in_process else self._workers(len(todo)),
            pin_memory=False,  # the lane does it, in one copy
            seed=self.job.seed,
        )
        try:
            yield self._until_stopped(loader)
        except BaseException:
            loader.end()
            raise

    def _until_stopped(self, batches: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        try:
            for batch in batches:
                self.check_stop()
                yield batch
        except Damaged as error:  # of a worker, it holds a traceback
            raise self.items.dataset.damaged() from error

    def _workers(self, packs: int) -> int:
        # To read and collate a token takes about 0.02 µs, the smallest model on an H200 ten times
        # as long, and the packs in flight are computed meanwhile. Workers take seconds to start.
        workers = self.job.workers
        return 0 if isinstance(workers, str) else min(workers, packs)


class FromFeed:
    """Embed packs of a feed; once a worker process was lost, without any.

    Parameters
    ----------
    seconds_before
        Of embedding, in earlier attempts.
    """

    def __init__(self, feed: Feed, seconds_before: float = 0.0) -> None:
        self._feed = feed
        self._start = time.perf_counter() - seconds_before
        self._in_process = False

    def __call__(self, runner: AsyncInferenceRunner, numbers: Sequence[int], sink: Sink) -> None:
        """Embed packs of these numbers, all of one budget; `sink` is called with each."""
        done: set[int] = set()

        def note(pack: FinishedPack) -> None:
            sink(pack)
            done.add(pack.statistics.pack)

        try:
            self._run(runner, numbers, note)
        except Exception as error:
            if (lost := worker_lost(error)) is None:
                raise
            logger.warning("%s; this process reads the rest itself", lost)
            self._in_process = True
            self._run(runner, [number for number in numbers if number not in done], sink)

    def _run(self, runner: AsyncInferenceRunner, numbers: Sequence[int], sink: Sink) -> None:
        budget = self._feed.packs.budget(numbers[0]) if numbers else None
        before = time.perf_counter() - self._start
        with self._feed.batches(numbers, in_process=self._in_process) as batches:
            runner.run(batches, sink, numbers=numbers, token_budget=budget, seconds_before=before)
