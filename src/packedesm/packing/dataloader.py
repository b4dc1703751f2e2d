"""Read, tokenise and collate packs ahead of the device, in processes that cannot see it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items

# Collating a pack takes milliseconds; starting a worker on a slow file system up to a minute.
PATIENCE = 300.0

_PREFETCH = 4  # packs that each worker prepares ahead
_WORKER_LOST = "DataLoader worker"  # how torch's message begins when one died


def worker_lost(error: BaseException | None) -> str | None:
    """Return what `error` says of a worker process that died, or hung and was killed; or None.

    It may come out of anything that the main thread does: torch raises it when the signal arrives.
    What is interrupted so may fail in turn with an error of its own: `threading` raises a KeyError
    where the start of a thread is.
    """
    while error is not None and not str(error).startswith(_WORKER_LOST):
        error = error.__context__
    return None if error is None else str(error).splitlines()[0]


def create_async_dataloader(
    dataset: SequenceDataset | Items,
    packs: Sequence[Sequence[int] | np.ndarray],
    *,
    workers: int,
    pin_memory: bool,
    seed: int,
    patience: float = PATIENCE,
) -> AsyncDataLoader:
    """Return a DataLoader that yields one `PackedBatch` per pack, in the order of `packs`.

    Parameters
    ----------
    dataset
        The shard's records, or the items of its job.
    packs
        Item numbers of each pack; a `packedesm.packing.packer.Packs` or any sequence of sequences.
    workers
        Worker processes, started with *spawn*: a forked process inherits the parent's CUDA
        state and locks. 0 collates in the calling process.
    pin_memory
        Copy batches to page-locked memory, from where copies to a GPU are asynchronous.
    seed
        Seed of the workers' random state. Nothing in the path draws random numbers today.
    patience
        Seconds to wait for a pack; then workers count as hung and are killed, a RuntimeError.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    several: dict[str, Any] = {}
    if workers:
        several = {"multiprocessing_context": "spawn", "prefetch_factor": _PREFETCH}
    return AsyncDataLoader(
        dataset,
        batch_sampler=_Plan(packs),
        collate_fn=VarlenCollator(),
        num_workers=workers,
        pin_memory=pin_memory,
        generator=generator,
        worker_init_fn=_one_thread,
        patience=patience,
        **several,
    )


class AsyncDataLoader(DataLoader):
    """A DataLoader whose workers start with every GPU hidden from them."""

    def __init__(self, *arguments: Any, patience: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._patience = patience
        self._workers: Sequence[BaseProcess] = ()

    def __iter__(self) -> Any:
        """Start the workers and iterate over the packs."""
        with _gpus_hidden():
            iterator = super().__iter__()
        self._workers = getattr(iterator, "_workers", ())
        return self._watch(iterator) if self._workers else iterator

    def _watch(self, iterator: Iterator) -> Iterator:
        # DataLoader's own timeout does not see a worker that stops while it hands over a tensor.
        while True:
            timer = threading.Timer(self._patience, self.kill)
            # The exception that a second lost worker raises can come before it is cancelled: a
            # thread of another kind would then hold up the end of the process.
            timer.daemon = True
            try:
                timer.start()
                batch = next(iterator)
            except StopIteration:
                return
            except (EOFError, ConnectionError) as error:
                raise RuntimeError(f"{_WORKER_LOST}: {error!r}") from error
            finally:
                timer.cancel()
            yield batch

    def kill(self) -> None:
        """Kill the workers: one that hangs would be waited for when this process ends."""
        for worker in self._workers:
            if worker.is_alive():
                worker.kill()

    def end(self) -> None:
        """Kill the workers and see them end, which nobody is told then of workers that were lost.

        Of each that ends while it is watched torch says so, in whatever the main thread is doing.
        """
        while True:
            with suppress(RuntimeError):
                self.kill()
                for worker in self._workers:
                    worker.join()
                return


class _Plan:
    """Batch sampler over a list of packs, as plain integers."""

    def __init__(self, packs: Sequence[Sequence[int] | np.ndarray]) -> None:
        self.packs = packs

    def __iter__(self) -> Iterator[list[int]]:
        for p in range(len(self.packs)):
            yield [int(item) for item in self.packs[p]]

    def __len__(self) -> int:
        return len(self.packs)


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)  # collating is numpy and memcpy; more threads only take cores


@contextmanager
def _gpus_hidden() -> Iterator[None]:
    # A spawned process takes its environment at start, before it imports torch: too late to set
    # it from worker_init_fn, where torch is loaded and may have looked for devices already.
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
