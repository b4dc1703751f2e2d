"""The places that one command computes at: GPUs, each with a process of its own, or the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from packedesm.device.gpus import numbered_gpus, visible_gpus
from packedesm.device.hardware import job_gpus
from packedesm.device.nvml import Gpu
from packedesm.errors import UserError, quote

_CPU = ("auto", "cpu")  # without GPUs


@dataclass(frozen=True)
class Place:
    """Where one process computes."""

    device: str  # as `packedesm.device.hardware.leased_device` takes it
    label: str  # what people call it, such as ``GPU 0``

    def __str__(self) -> str:
        return self.label

    @property
    def kind(self) -> str:
        """The kind of device, ``cuda`` or ``cpu``."""
        return "cpu" if self.device in _CPU else "cuda"


def find_places(device: str, devices: str | None = None) -> list[Place]:
    """Return the places that a command may compute at.

    Parameters
    ----------
    device
        ``cpu``; ``cuda``, all GPUs; or ``auto``, all GPUs where there are some.
    devices
        If given, which of them, with commas between: GPUs by their numbers as CUDA counts those
        that this process may use, or by the beginnings of their UUIDs; or ``cpu``, as often as
        there are to be processes.

    Raises
    ------
    UserError
        If there is no such device, or one is named twice, or `device` is of another kind.
    Fault
        If machine, environment or Slurm shows a GPU, and torch can use none.
    """
    if devices is None:
        gpus = numbered_gpus() if job_gpus(device)[0] else []
        return [Place(gpu.uuid, f"GPU {n}") for n, gpu in enumerate(gpus)] or [Place(device, "CPU")]
    entries = [entry.strip() for entry in devices.split(",")]
    cpus = entries.count("cpu")
    kind = "cpu" if cpus else "cuda"
    if cpus not in (0, len(entries)):
        raise UserError(
            f"--devices {devices}: names the CPU beside GPUs, whose numbers are others; name "
            "either GPUs or the CPU"
        )
    if device not in ("auto", kind):
        raise UserError(f"--devices {devices}: device is {device}; name one of the two alone")
    if cpus:
        return [Place("cpu", f"CPU process {n}" if cpus > 1 else "CPU") for n in range(cpus)]
    gpus = numbered_gpus()
    places = [Place(gpus[number].uuid, f"GPU {number}") for number in _numbers(entries, gpus)]
    job_gpus(anywhere(places))  # whether torch can use them
    return places


def anywhere(places: Sequence[Place]) -> str:
    """Return the device, as `leased_device` takes it, of a process that may choose its place."""
    return ",".join(dict.fromkeys(place.device for place in places))


def _numbers(entries: Sequence[str], gpus: Sequence[Gpu]) -> list[int]:
    """Return the number of the GPU that each entry names."""
    numbers: list[int] = []
    for entry in entries:
        if entry.isdecimal():
            found = [int(entry)] if int(entry) < len(gpus) else []
        else:
            found = [n for n, gpu in enumerate(gpus) if entry and gpu.uuid.startswith(entry)]
        if len(found) != 1:
            there = ", ".join(f"{n} {gpu}" for n, gpu in enumerate(gpus))
            there = f"those here are {there}" if gpus else visible_gpus().reason
            what = "several GPUs" if found else "no GPU"
            raise UserError(f"--devices {quote(entry)}: names {what}; {there}")
        if found[0] in numbers:
            raise UserError(f"--devices: GPU {found[0]} is named twice; name each once")
        numbers += found
    return numbers
