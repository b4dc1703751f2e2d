"""What the job runs on."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from packedesm.device.cpu import instructions
from packedesm.device.gpus import VISIBLE, visible_gpus
from packedesm.device.lease import Unusable, freest_first, lease
from packedesm.device.nvml import Gpu, driver_version
from packedesm.device.trial import product_fault, trial_in_a_process
from packedesm.errors import Fault, UserError

logger = logging.getLogger(__name__)

# The first GPUs, by compute capability, that compute in bfloat16: Ampere.
_BFLOAT16 = (8, 0)


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
        """Return kind, name, UUID and memory, and the CPU threads, for ``run.json``.

        Of a CPU its instructions too, see `packedesm.device.cpu.instructions`.
        """
        on_cpu = self.torch_device.type == "cpu"
        return {
            "kind": self.torch_device.type,
            "name": self.name,
            "instructions": instructions() if on_cpu else None,
            "uuid": self.uuid,
            "memory_bytes": self.memory_bytes,
            "threads": torch.get_num_threads(),
        }


_held: ContextVar[Device | None] = ContextVar("held", default=None)


@contextmanager
def leased_device(device: str = "auto") -> Iterator[Device]:
    """Give the device of this job, a leased GPU or else the CPU.

    From then on CUDA shows this process that GPU alone, as its first, so this must come before
    anything else that touches CUDA. Which GPU that is cannot be changed once CUDA has started: a
    later lease in the same process waits for the same one. Within the block it is given again: who
    holds a device for many jobs leases it once.

    Parameters
    ----------
    device
        ``cpu``; ``cuda``, a GPU; ``auto``, a GPU where there is one; or which GPUs it may be, by
        their UUIDs with commas between.

    Raises
    ------
    UserError
        If `device` is ``cuda`` and there is no GPU.
    Fault
        If machine, environment or Slurm shows a GPU, and none can be used.
    """
    if (held := _held.get()) is not None:
        yield held
        return
    with _leased(device) as leased:
        token = _held.set(leased)
        try:
            yield leased
        finally:
            _held.reset(token)


@contextmanager
def _leased(device: str) -> Iterator[Device]:
    gpus, reason = job_gpus(device)
    if not gpus:
        logger.info("running on the CPU: %s", reason)
        yield Device.of(torch.device("cpu"))
        return
    with ExitStack() as stack:
        try:
            gpu = stack.enter_context(_settled(gpus))
        except Unusable as unusable:
            raise Fault(f"no GPU can be used: {unusable}; {_remedy()}") from None
        logger.info("running on %s, %s", gpu.name, gpu.uuid)
        yield Device.of(torch.device("cuda", 0), gpu.uuid)


def job_gpus(device: str) -> tuple[list[Gpu], str]:
    """Return the GPUs that a job may take, the best first, and why it runs on the CPU if none.

    Parameters and exceptions are those of `leased_device`, of what can be told without CUDA.
    """
    if device == "cpu":
        return [], "device is cpu"
    visible = visible_gpus()
    gpus = visible.gpus
    if device in ("auto", "cuda"):
        for other in visible.unread:
            logger.warning("a GPU cannot be read and is left out: %s", other)
    else:  # one that is not seen any more has its reason when it is tried
        known = {gpu.uuid: gpu for gpu in gpus}
        gpus = tuple(known.get(uuid) or Gpu(uuid, uuid) for uuid in device.split(","))
    if gpus:
        if torch.version.cuda is None:
            names = ", ".join(map(str, gpus))
            raise Fault(f"{names}: this torch cannot use a GPU; {_remedy()}")
        return freest_first(gpus), ""
    if device == "cuda":
        raise UserError(f"device is cuda: {visible.reason}; run where there is one, or say auto")
    if visible.expected:
        raise Fault(f"{visible.reason}; {_remedy()}")
    return [], visible.reason


def check_dtype(device: torch.device, dtype: str) -> None:
    """Raise UserError if `device` does not compute in `dtype`."""
    if device.type != "cuda" or dtype != "bfloat16":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _BFLOAT16:
        has, needs = (".".join(map(str, version)) for version in (capability, _BFLOAT16))
        raise UserError(
            f"dtype bfloat16: {torch.cuda.get_device_name(device)} does not compute in it (compute "
            f"capability {has}, and it takes {needs}); name float16 or float32"
        )


@contextmanager
def _settled(gpus: list[Gpu]) -> Iterator[Gpu]:
    """Lease one of `gpus`, let CUDA start on it alone, and see that it computes.

    Raises
    ------
    Unusable
        If none can be used.
    """
    # Only who has a choice pays for a trial that leaves it open.
    trial = trial_in_a_process if len(gpus) > 1 else lambda _gpu: None
    with lease(gpus, trial=trial) as gpu:
        os.environ[VISIBLE] = gpu.uuid
        place = torch.device("cuda", 0)
        if (fault := product_fault(place)) is not None:
            raise Unusable(f"{gpu}: {fault}")
        shown = f"GPU-{torch.cuda.get_device_properties(place).uuid}"
        if shown != gpu.uuid and shown in {other.uuid for other in gpus}:
            raise Unusable(
                f"{gpu}: this process has used CUDA before, and computes on {shown}; set {VISIBLE} "
                "to one GPU before it starts"
            )
        torch.cuda.set_device(place)
        yield gpu


def fits(newest: tuple[int, int] | None, built: str | None) -> bool:
    """Tell whether a driver for CUDA up to `newest` runs a torch that is `built` for a version.

    None is no driver, and a torch for CPUs.
    """
    # Within one major version of CUDA, older drivers run what was built for newer ones.
    return newest is not None and built is not None and newest[0] >= int(built.partition(".")[0])


def _remedy() -> str:
    """Return what driver and torch are made for, and what to do where they do not fit."""
    built, driver = torch.version.cuda, driver_version()
    facts = [f"torch {torch.__version__} is built for {f'CUDA {built}' if built else 'CPUs'}"]
    newest = None
    if driver is None:
        facts.append("no NVIDIA driver answers")
    else:
        newest = driver[1]
        facts.append(f"driver {driver[0]} supports CUDA {newest[0]}.{newest[1]}")
    if not fits(newest, built):
        facts.append("install a driver and a torch that fit each other")
    return f"{'; '.join(facts)}; or say device: cpu to compute without a GPU"


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
