"""What the job runs on."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packedesm.device.gpus import lease, visible_gpus

logger = logging.getLogger(__name__)


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
