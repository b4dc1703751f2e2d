"""How one pack gets to the device, through the model, and back: in order on a CPU, by streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from packedesm.device.memory import host_buffer
from packedesm.packing.batch import PackedBatch


@dataclass(frozen=True)
class Embedded:
    """What came out of a pack's forward pass, on the host."""

    vectors: dict[str, torch.Tensor]
    seconds: float = 0.0

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the vectors as numpy arrays."""
        return {output: tensor.numpy() for output, tensor in self.vectors.items()}


Embed = Callable[[PackedBatch], dict[str, torch.Tensor]]
Collect = Callable[[], Embedded]


class CpuLane:
    """Compute in the calling thread."""

    def launch(self, batch: PackedBatch, embed: Embed) -> Collect:
        """Embed a pack, and return a function that gives what came out."""
        start = time.perf_counter()
        vectors = embed(batch)
        seconds = time.perf_counter() - start
        return lambda: Embedded(vectors, seconds)


class CudaLane:
    """Queue copy in, computation and copy out on three streams; `collect` waits for the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copy_in = torch.cuda.Stream(device)
        self.compute = torch.cuda.Stream(device)
        self.copy_out = torch.cuda.Stream(device)
        # The model's weights were written on the current stream.
        self.compute.wait_stream(torch.cuda.current_stream(device))

    def launch(self, batch: PackedBatch, embed: Embed) -> Collect:
        """Queue a pack, and return a function that waits for what comes out and gives it."""
        with torch.cuda.stream(self.copy_in):
            on_device = batch.to(self.device)
        begin, end, done = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        with torch.cuda.stream(self.compute):
            self.compute.wait_stream(self.copy_in)
            on_device.record_stream(self.compute)
            begin.record()
            vectors = embed(on_device)
            end.record()
        with torch.cuda.stream(self.copy_out):
            self.copy_out.wait_event(end)
            host = {output: self._to_host(tensor) for output, tensor in vectors.items()}
            done.record()

        def collect() -> Embedded:
            done.synchronize()
            return Embedded(host, begin.elapsed_time(end) / 1000)

        return collect

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor.record_stream(self.copy_out)
        host = host_buffer(tensor.shape, tensor.dtype)
        return host.copy_(tensor, non_blocking=True)
