"""What the hardware can do at most: matrix products, a copy in memory, a write to a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from packedesm.device.timing import time_repeats
from packedesm.esm2 import int8
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

LONG = 5.0  # seconds of one product


def load(device: str, dtypes: list[str], geometry: Geometry, sizes: Sizes, folder: Path) -> Limits:
    """Prepare measurements of products in these dtypes."""
    return Limits(device, dtypes, geometry, sizes, folder)


class Limits:
    """Limits of the device, each measured once in each round; what it cannot do raises."""

    packages = ("torch",)

    def __init__(
        self, device: str, dtypes: list[str], geometry: Geometry, sizes: Sizes, folder: Path
    ) -> None:
        self.device, self.dtypes, self.sizes, self.folder = device, dtypes, sizes, folder
        tokens, width = sizes.tokens, geometry.width
        self.shapes = {
            "matmul": (sizes.side,) * 3,
            "qkv": (tokens, width, 3 * width),
            "attention_out": (tokens, width, width),
            "fc1": (tokens, width, 4 * width),
            "fc2": (tokens, 4 * width, width),
        }
        self.others = {
            "copy": self._copy,
            "write to page cache": partial(self._write, to_disk=False),
            "write to disk": partial(self._write, to_disk=True),
        }

    def names(self) -> list[str]:
        """Return what can be measured, in the order in which it is shown."""
        products = [f"{name} {dtype}" for dtype in self.dtypes for name in self.shapes]
        return products + list(self.others)

    def measure(self, name: str) -> float:
        """Return operations per second of a product, bytes per second of a copy or a write."""
        if name in self.others:
            return self.others[name]()
        product, _, dtype = name.partition(" ")
        if dtype == int8.INT8:
            return self._int8_product(*self.shapes[product])
        return self._product(*self.shapes[product], getattr(torch, dtype))

    @torch.inference_mode()
    def _int8_product(self, m: int, k: int, n: int) -> float:
        """Return operations per second, of 2 m k n, by the fastest library that can do it."""
        layer = int8.Int8Linear(torch.nn.Linear(k, n))
        x = torch.randn(m, k)
        ways = [lambda: int8.linear(x, layer)]
        if int8.kernel() == "VNNI":  # without, torch's takes a minute
            a, b = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))
            ways.append(lambda: torch._int_mm(a, b))
        return 2 * m * k * n / min(map(self._best_of_three, ways))

    @torch.inference_mode()
    def _product(self, m: int, k: int, n: int, dtype: torch.dtype) -> float:
        """Return operations per second, of 2 m k n, by the fastest library that can do it."""
        a = torch.randn(m, k, device=self.device).to(dtype)
        b = torch.randn(n, k, device=self.device).to(dtype)
        ways = [lambda: torch.nn.functional.linear(a, b)]
        if self.device == "cpu" and _onednn_multiplies(dtype):
            # What torch.compile emits; on AMD, torch itself multiplies float32 by the slower MKL.
            linear = torch.ops.mkldnn._linear_pointwise
            ways.append(lambda: linear(a, b, None, "none", [], ""))
        seconds, errors = [], []
        for way in ways:
            try:
                seconds.append(self._best_of_three(way))
            except RuntimeError as error:
                errors.append(error)
        if not seconds:
            raise errors[0]
        return 2 * m * k * n / min(seconds)

    def _copy(self) -> float:
        """Return bytes copied per second; each is read once and written once."""
        source = torch.ones(self.sizes.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return self.sizes.copied / self._best_of_three(lambda: target.copy_(source))

    def _write(self, to_disk: bool) -> float:
        """Return bytes written per second, to the page cache or down to the disk."""
        path = self.folder / "written"
        block = os.urandom(1 << 20)
        try:
            with path.open("wb", buffering=0) as handle:
                start = time.perf_counter()
                for _ in range(self.sizes.written >> 20):
                    handle.write(block)
                if to_disk:
                    os.fsync(handle.fileno())
                seconds = time.perf_counter() - start
        finally:
            path.unlink(missing_ok=True)
        return self.sizes.written / seconds

    def _best_of_three(self, work: Callable[[], object]) -> float:
        """Return the seconds of the fastest of three calls, or of one that takes very long.

        Half precision does on a CPU without instructions for it.
        """
        times = partial(time_repeats, work, torch.device(self.device), warm_up=0)
        (first,) = times(repeats=1)  # a warm-up, of which long work has no need
        return first if first > LONG else min(times(repeats=3))


def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN is there and takes products of this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    return {
        torch.float32: lambda: True,
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }.get(dtype, lambda: False)()
