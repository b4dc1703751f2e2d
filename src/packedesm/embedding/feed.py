"""The packs that a job has still to do, read and collated ahead of the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from packedesm.embedding.replan import PackPlan
from packedesm.errors import Damaged
from packedesm.files import damaged
from packedesm.options import JobOptions
from packedesm.packing.batch import PackedBatch
from packedesm.packing.dataloader import create_async_dataloader
from packedesm.packing.items import Items


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
            raise damaged(self.items.fasta) from error

    def _workers(self, packs: int) -> int:
        # To read and collate a token takes about 0.02 µs, the smallest model on an H200 ten times
        # as long, and the packs in flight are computed meanwhile. Workers take seconds to start.
        workers = self.job.workers
        return 0 if isinstance(workers, str) else min(workers, packs)
