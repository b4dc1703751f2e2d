"""What the hardware can do at most: matrix products, a copy in memory, a write to a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from packedesm.device.hardware import time_repeats
from packedesm.esm2.geometry import Geometry


@dataclass(frozen=True)
class Sizes:
    """What is multiplied, copied and written."""

    side: int  # of the large square product
    tokens: int  # rows of the model's own products
    copied: int  # bytes
    written: int  # bytes


SIZES = {
    "cpu": Sizes(side=4096, tokens=4096, copied=1 << 28, written=1 << 27),
    "cuda": Sizes(side=8192, tokens=32768, copied=1 << 31, written=1 << 30),
}


def load(device: str, dtypes: list[str], geometry: Geometry, sizes: Sizes, folder: Path) -> Limits:
    """Prepare measurements of products in these dtypes."""
    return Limits(device, dtypes, geometry, sizes, folder)


class Limits:
    """Limits of the device, measured once in each round."""

    packages = ("torch",)

    def __init__(
        self, device: str, dtypes: list[str], geometry: Geometry, sizes: Sizes, folder: Path
    ) -> None:
        self.device, self.dtypes, self.sizes, self.folder = device, dtypes, sizes, folder
        tokens, width = sizes.tokens, geometry.width
        self.shapes = {
            "qkv": (tokens, width, 3 * width),
            "attention_out": (tokens, width, width),
            "fc1": (tokens, width, 4 * width),
            "fc2": (tokens, 4 * width, width),
        }

    def measure(self) -> dict[str, float]:
        """Return operations per second of each product and bytes per second of copy and write."""
        found = {}
        for dtype in self.dtypes:
            shapes = {"matmul": (self.sizes.side,) * 3, **self.shapes}
            for name, (m, k, n) in shapes.items():
                found[f"{name} {dtype}"] = self._product(m, k, n, getattr(torch, dtype))
        found["copy"] = self._copy()
        found |= self._write()
        return found

    @torch.inference_mode()
    def _product(self, m: int, k: int, n: int, dtype: torch.dtype) -> float:
        """Return operations per second, of 2 m k n, by the fastest library that torch offers."""
        a = torch.randn(m, k, device=self.device).to(dtype)
        b = torch.randn(n, k, device=self.device).to(dtype)
        ways = [lambda: torch.nn.functional.linear(a, b)]
        if self.device == "cpu" and torch.backends.mkldnn.is_available():
            # What torch.compile emits; on AMD, torch itself multiplies float32 by the slower MKL.
            linear = torch.ops.mkldnn._linear_pointwise
            ways.append(lambda: linear(a, b, None, "none", [], ""))
        return 2 * m * k * n / min(map(self._best_of_three, ways))

    def _copy(self) -> float:
        """Return bytes copied per second; each is read once and written once."""
        source = torch.ones(self.sizes.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.sizes.copied / self._best_of_three(lambda: target.copy_(source))

    def _write(self) -> dict[str, float]:
        """Return bytes written per second, to the page cache and down to the disk."""
        path = self.folder / "written"
        block = os.urandom(1 << 20)
        with path.open("wb", buffering=0) as handle:
            start = time.perf_counter()
            for _ in range(self.sizes.written >> 20):
                handle.write(block)
            cached = time.perf_counter() - start
            os.fsync(handle.fileno())
            on_disk = time.perf_counter() - start
        path.unlink()
        return {
            "write to page cache": self.sizes.written / cached,
            "write to disk": self.sizes.written / on_disk,
        }

    def _best_of_three(self, work: Callable[[], object]) -> float:
        return min(time_repeats(work, torch.device(self.device), repeats=3, warm_up=1))
