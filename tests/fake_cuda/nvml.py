"""A made-up machine with NVIDIA GPUs: what NVML says of them, and what CUDA and torch make of it.

    machine = Machine([MadeUpGpu("a"), MadeUpGpu("b", lost=True)])
    machine.install(monkeypatch)

The functions of pynvml are replaced by ones that answer from this table; nothing else asks NVML.
CUDA is torch's part of it, as far as a job asks before it loads a model: it reads
``CUDA_VISIBLE_DEVICES`` when it is first touched, and never again.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pynvml
import torch

from packedesm.device import hardware, nvml, trial

# Why a reading is refused: by the GPU, and by the driver to this user.
REFUSALS = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION)
TRIAL = (sys.executable, "-S", str(Path(__file__).with_name("trial.py")))


@dataclass
class MadeUpGpu:
    """One GPU, or one MIG slice; `refused` are readings that fail, by the function's name."""

    seed: str  # of its UUID
    name: str = "NVIDIA H100"
    total: int = 80 << 30
    used: int = 0
    processes: int = 0
    lost: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    slices: list[MadeUpGpu] | None = None  # where it is in MIG mode
    prefix: str = "GPU-"
    capability: tuple[int, int] = (9, 0)
    fault: str | None = None  # what torch says when it computes on it

    @property
    def raw(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.seed))

    @property
    def uuid(self) -> str:
        return self.prefix + self.raw


def mig(seed: str, **changes) -> MadeUpGpu:
    """Return a slice of a GPU."""
    name = "NVIDIA A100 MIG 1g.10gb"
    return MadeUpGpu(seed, **{"name": name, "total": 10 << 30, "prefix": "MIG-"} | changes)


@dataclass
class Machine:
    """GPUs in NVML's order, and the driver; `absent` is NVML's error where it cannot be opened."""

    gpus: list[MadeUpGpu]
    absent: int | None = None
    control: bool = False  # whether the driver's device file is there
    driver: str = "550.54.15"
    driver_cuda: int = 12040  # as NVML writes 12.4
    torch_cuda: str | None = "12.8"  # what torch is built for
    cuda_order: list[str] | None = None  # seeds, where CUDA's order is not NVML's
    energy_mj: int = 0
    started_with: str | None = None  # CUDA_VISIBLE_DEVICES, once CUDA has been touched

    def install(self, monkeypatch) -> Machine:
        """Put this machine in the place of the real one until the test ends."""
        for name in dir(self):
            if name.startswith("nvml"):
                assert hasattr(pynvml, name)
                monkeypatch.setattr(pynvml, name, self._refusing(name))
        monkeypatch.setattr(nvml, "_CONTROL", Path("/dev/null" if self.control else "/dev/none"))
        # So that what a job sets is taken back.
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "SLURM_JOB_GPUS"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.delenv("SLURM_STEP_GPUS", raising=False)
        monkeypatch.setattr(torch.version, "cuda", self.torch_cuda)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: self.cuda(device))
        monkeypatch.setattr(torch.cuda, "get_device_properties", self._properties)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: self.cuda(device).name)
        capability = lambda device: self.cuda(device).capability  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(hardware, "product_fault", lambda device: self.cuda(device).fault)
        faults = {gpu.uuid: gpu.fault for gpu in self._shown() if gpu.fault}
        monkeypatch.setenv("MADE_UP_FAULTS", json.dumps(faults))
        monkeypatch.setattr(trial, "_COMMAND", TRIAL)
        return self

    # What NVML says.

    def nvmlInit(self):
        if self.absent is not None:
            raise pynvml.NVMLError(self.absent)

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self):
        return self.driver_cuda

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self._there(self.gpus[index])

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for gpu in self._shown():
            if gpu.uuid == uuid:
                return self._there(gpu)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, gpu):
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu):
        return gpu.name

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(total=gpu.total, used=gpu.used, free=gpu.total - gpu.used)

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=number) for number in range(gpu.processes)]

    def nvmlDeviceGetMigMode(self, gpu):
        mode = int(gpu.slices is not None)
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu, index):
        if index >= len(gpu.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu.slices[index]

    def nvmlDeviceGetUtilizationRates(self, gpu):
        return SimpleNamespace(gpu=97)

    def nvmlDeviceGetPowerUsage(self, gpu):
        return 612_000

    def nvmlDeviceGetClockInfo(self, gpu, _kind):
        return 1980

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        self.energy_mj += 450_000
        return self.energy_mj

    # What CUDA says.

    def cuda(self, device: torch.device | int = 0) -> MadeUpGpu:
        """Return what CUDA has at a place, with what CUDA_VISIBLE_DEVICES was at its start."""
        if self.started_with is None:
            self.started_with = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = self._in_cuda_order()
        if self.started_with:
            gpus = [self._entry(entry, gpus) for entry in self.started_with.split(",")]
        return gpus[device if isinstance(device, int) else device.index]

    def _entry(self, entry: str, gpus: list[MadeUpGpu]) -> MadeUpGpu:
        if entry.isdecimal():
            found = gpus[int(entry) : int(entry) + 1]
        else:
            found = [gpu for gpu in gpus if gpu.uuid.startswith(entry)]
        return found[0] if found else MadeUpGpu(entry, fault="No CUDA GPUs are available")

    def _in_cuda_order(self) -> list[MadeUpGpu]:
        gpus = [gpu for gpu in self._shown() if not gpu.lost]
        if self.cuda_order is None or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
            return gpus
        return sorted(gpus, key=lambda gpu: self.cuda_order.index(gpu.seed))

    def _properties(self, device) -> SimpleNamespace:
        gpu = self.cuda(device)
        return SimpleNamespace(name=gpu.name, total_memory=gpu.total, uuid=gpu.raw)

    def _shown(self) -> list[MadeUpGpu]:
        return [one for gpu in self.gpus for one in (gpu.slices or [gpu])]

    def _there(self, gpu: MadeUpGpu) -> MadeUpGpu:
        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return gpu

    def _refusing(self, name: str):
        answer = getattr(self, name)

        def function(*arguments):
            for gpu in arguments[:1]:
                if isinstance(gpu, MadeUpGpu) and name in gpu.refused:
                    raise pynvml.NVMLError(gpu.refused[name])
            return answer(*arguments)

        return function
