"""How one pack gets to the device, through the model, and back: in order on a CPU, by streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from packedesm.device.memory import page_locked
from packedesm.embedding.finite import finite_records
from packedesm.embedding.pack import not_finite
from packedesm.packing.batch import PackedBatch


@dataclass(frozen=True)
class Embedded:
    """What came out of a pack's forward pass, on the host."""

    vectors: dict[str, torch.Tensor]
    seconds: float
    finite: np.ndarray  # bool (R,): records without NaN and infinity

    @property
    def bad(self) -> np.ndarray:
        """Places in the pack of the records with NaN or infinity in a vector, int64."""
        return np.flatnonzero(~self.finite)

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the vectors as numpy arrays."""
        return _as_numpy(self.vectors)

    @classmethod
    def on_host(
        cls, vectors: dict[str, torch.Tensor], batch: PackedBatch, seconds: float
    ) -> Embedded:
        """Return what the host computed of a pack, and looked at."""
        finite = np.ones(len(batch.rows), bool)
        finite[not_finite(_as_numpy(vectors), batch.residues)] = False
        return cls(vectors, seconds, finite)


Embed = Callable[[PackedBatch], dict[str, torch.Tensor]]
Collect = Callable[[], Embedded]


class CpuLane:
    """Compute in the calling thread."""

    def launch(self, batch: PackedBatch, embed: Embed) -> Collect:
        """Embed a pack, and return a function that gives what came out."""
        start = time.perf_counter()
        vectors = embed(batch)
        seconds = time.perf_counter() - start
        return lambda: Embedded.on_host(vectors, batch, seconds)


class CudaLane:
    """Queue copy in, computation and copy out on three streams; `collect` waits for the last.

    Whichever thread launches or collects works on the lane's device from then on: a thread begins
    on the first one, and would take memory there for nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy_in = torch.cuda.Stream(device)
        self.compute = torch.cuda.Stream(device)
        self.copy_out = torch.cuda.Stream(device)
        # The model's weights were written on the current stream.
        self.compute.wait_stream(torch.cuda.current_stream(device))

    def launch(self, batch: PackedBatch, embed: Embed) -> Collect:
        """Queue a pack, and return a function that waits for what comes out and gives it."""
        torch.cuda.set_device(self.device)
        batch = page_locked(batch.pin_memory, lambda: batch)
        try:
            return self._queue(batch, embed)
        except BaseException:
            # What was queued still reads and writes page-locked memory, which is let go here.
            with suppress(Exception):
                self.copy_in.synchronize()
                self.copy_out.synchronize()
            raise

    def _queue(self, batch: PackedBatch, embed: Embed) -> Collect:
        with torch.cuda.stream(self.copy_in):
            on_device = batch.to(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.compute):
            self.compute.wait_stream(self.copy_in)
            on_device.record_stream(self.compute)
            begin.record()
            vectors = embed(on_device)
            finite = finite_records(vectors, on_device.record_residues)
            end.record()
        # Whoever waits for it sleeps: to spin would take a core from reading and writing.
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self.copy_out):
            self.copy_out.wait_event(end)
            host = {output: self._to_host(tensor) for output, tensor in vectors.items()}
            finite_on_host = self._to_host(finite)
            done.record()

        def collect(_kept: PackedBatch = batch) -> Embedded:
            # The page-locked batch is kept until here: the copy to the device reads it.
            torch.cuda.set_device(self.device)
            done.synchronize()
            seconds = begin.elapsed_time(end) / 1000
            return Embedded(host, seconds, finite_on_host.numpy())

        return collect

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(self.copy_out)
        empty = partial(torch.empty, tensor.shape, dtype=tensor.dtype)
        host = page_locked(partial(empty, pin_memory=True), empty)
        return host.copy_(tensor, non_blocking=True)


def _as_numpy(vectors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return tensors on the host as numpy arrays."""
    return {output: tensor.numpy() for output, tensor in vectors.items()}
