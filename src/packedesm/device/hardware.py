"""What the job runs on, and how fast that can multiply matrices."""

from __future__ import annotations

import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from packedesm.device.gpus import lease, visible_gpus
from packedesm.esm2.linear import linear

logger = logging.getLogger(__name__)

# Large enough to run at full speed, small enough to take a second: float32 on a laptop's core
# multiplies 1,024 x 1,024 in about 30 ms, a current GPU 8,192 x 8,192 in half precision in 1.5 ms.
_SIDE = {"cpu": 1024, "cuda": 8192}
_REPEATS = 9


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a large square matrix product on random data, the median of nine.

    A product of two (n, n) matrices counts 2 n^3 operations. This is the peak that the job's
    own FLOP/s are set against; it is measured in the job because clocks and neighbours differ,
    and with the library that the model's layers use: on a CPU they differ by a factor of two.
    """
    side = _SIDE[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    layer = nn.Linear(side, side, bias=False, device=device, dtype=dtype).requires_grad_(False)
    # The first two load libraries and raise clocks.
    seconds = time_repeats(lambda: linear(a, layer), device, repeats=_REPEATS, warm_up=2)
    return 2 * side**3 / statistics.median(seconds)


@dataclass(frozen=True)
class Device:
    """What a job runs on."""

    torch_device: torch.device
    uuid: str | None  # of a GPU, as NVML gives it
    name: str
    memory_bytes: int | None  # None where the system does not tell

    @classmethod
    def of(cls, device: torch.device, uuid: str | None = None) -> Device:
        """Return what is known of `device`."""
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            return cls(device, uuid, properties.name, properties.total_memory)
        return cls(device, uuid, _cpu_name(), _host_memory_bytes())

    def describe(self) -> dict[str, Any]:
        """Return kind, name, UUID and memory, and the CPU threads, for ``run.json``."""
        return {
            "kind": self.torch_device.type,
            "name": self.name,
            "uuid": self.uuid,
            "memory_bytes": self.memory_bytes,
            "threads": torch.get_num_threads(),
        }


@contextmanager
def leased_device() -> Iterator[Device]:
    """Give the device of this job, a leased GPU or else the CPU."""
    gpus, reason = visible_gpus()
    if device_kind() == "cpu":
        if gpus:
            logger.warning("running on the CPU: this build of torch cannot use %s", gpus[0].name)
        else:
            logger.info("running on the CPU: %s", reason)
        yield Device.of(torch.device("cpu"))
        return
    with lease(gpus) as gpu:
        device = torch.device("cuda", gpus.index(gpu))
        torch.cuda.set_device(device)
        logger.info("running on %s, %s", gpu.name, gpu.uuid)
        yield Device.of(device, gpu.uuid)


def device_kind() -> str:
    """Return what kind of device a job gets here, ``cuda`` or ``cpu``."""
    return "cuda" if visible_gpus()[0] and torch.cuda.is_available() else "cpu"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _host_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    totals = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    return next(totals, None)


def time_repeats(
    work: Callable[[], object], device: torch.device, *, repeats: int, warm_up: int
) -> list[float]:
    """Return the seconds that each of `repeats` calls of `work` took, after `warm_up` others.

    Each begins when the device is idle and ends when it is idle again.
    """
    seconds = []
    for _ in range(warm_up + repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
