"""What NVML tells of this machine's GPUs: each reading by itself, so that none hides another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

# Where NVML ends with one of these there is no NVIDIA driver; any other is that of a driver.
_NO_DRIVER = (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
# What a driver puts there for its programs: in a container it can be all that shows a GPU.
_CONTROL = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, or a MIG slice of one; what NVML does not tell is None."""

    uuid: str  # as NVML gives it, or where NVML knows none, as CUDA_VISIBLE_DEVICES names it
    name: str
    memory_bytes: int | None = None
    free_bytes: int | None = None  # when it was read
    processes: int | None = None  # that computed on it then

    def __str__(self) -> str:
        if self.uuid.isdecimal():  # which no UUID is
            return f"entry {self.uuid} of CUDA_VISIBLE_DEVICES"
        return self.uuid if self.name == self.uuid else f"{self.name} ({self.uuid})"


@dataclass(frozen=True)
class Inventory:
    """The GPUs of this machine, in NVML's order, and what stands in the way of others."""

    gpus: tuple[Gpu, ...]
    unread: tuple[str, ...]  # GPUs, or NVML itself, that cannot be read, each with the reason
    driver: str | None  # why there is none, where there is no NVIDIA driver


@contextmanager
def nvml() -> Iterator[None]:
    """Open NVML; raises `pynvml.NVMLError` where there is no NVIDIA driver."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def reading(read: Callable[..., Any], *arguments: Any) -> Any:
    """Return what NVML's function `read` gives, or None where it refuses."""
    try:
        return read(*arguments)
    except pynvml.NVMLError:
        return None


def inventory() -> Inventory:
    """Return the GPUs that NVML knows; the slices of a GPU in MIG mode stand in its place."""
    gpus: list[Gpu] = []
    unread = []
    try:
        with nvml():
            for index in range(pynvml.nvmlDeviceGetCount()):
                try:
                    found = _devices(pynvml.nvmlDeviceGetHandleByIndex(index))
                except pynvml.NVMLError as error:
                    unread.append(f"GPU {index}: {error}")
                else:
                    gpus += found
                    if not found:
                        unread.append(f"GPU {index}: is in MIG mode and has no slice")
    except pynvml.NVMLError as error:
        if error.value not in _NO_DRIVER:
            unread.append(f"NVML: {error}")
        elif _CONTROL.exists():
            unread.append(f"NVML: {error}, but {_CONTROL} is there")
        else:
            return Inventory((), (), driver=str(error))
    return Inventory(tuple(gpus), tuple(unread), driver=None)


def driver_version() -> tuple[str, tuple[int, int]] | None:
    """Return the driver's version and the newest CUDA it supports; None if NVML does not tell."""
    try:
        with nvml():
            version = pynvml.nvmlSystemGetDriverVersion()
            cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    except pynvml.NVMLError:
        return None
    return version, (cuda // 1000, cuda % 1000 // 10)


def _devices(handle: Any) -> list[Gpu]:
    """Return the GPU, or where it is in MIG mode its slices."""
    mode = reading(pynvml.nvmlDeviceGetMigMode, handle)  # refused where there is no MIG
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [_describe(handle)]
    places = range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    slices = (reading(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, i) for i in places)
    return [_describe(found) for found in slices if found is not None]


def _describe(handle: Any) -> Gpu:
    uuid = pynvml.nvmlDeviceGetUUID(handle)
    memory = reading(pynvml.nvmlDeviceGetMemoryInfo, handle)  # none where it is the host's
    running = reading(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return Gpu(
        uuid=uuid,
        name=reading(pynvml.nvmlDeviceGetName, handle) or uuid,
        memory_bytes=None if memory is None else memory.total,
        free_bytes=None if memory is None else memory.free,
        processes=None if running is None else len(running),
    )
