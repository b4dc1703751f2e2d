"""How one pack gets to the device, through the model, and back: in order on a CPU, by streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from packedesm.packing.batch import PackedBatch

_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Embedded:
    """What came out of a pack's forward passes, on the host."""

    vectors: dict[str, torch.Tensor]
    seconds: float = 0.0
    splits: int = 1
    float32_rows: np.ndarray = field(default_factory=lambda: _NO_ROWS)

    def numpy(self) -> dict[str, np.ndarray]:
        """Return the vectors as numpy arrays."""
        return {output: tensor.numpy() for output, tensor in self.vectors.items()}

    @classmethod
    def join(cls, parts: list[Embedded]) -> Embedded:
        """Return the parts of one pack as one, in their order."""
        return cls(
            {name: torch.cat([part.vectors[name] for part in parts]) for name in parts[0].vectors},
            sum(part.seconds for part in parts),
            sum(part.splits for part in parts),
            np.concatenate([part.float32_rows for part in parts]),
        )


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
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)
