"""Which GPUs this process may use, of those that the machine has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from packedesm.device.driver import uuids_in_cuda_order
from packedesm.device.nvml import Gpu, Inventory, inventory

VISIBLE = "CUDA_VISIBLE_DEVICES"
# What people and schedulers write there so that a process sees no GPU.
_HIDING = ("", "-1", "none", "void", "NoDevFiles")
# Where Slurm names the GPUs that it has given to a job.
_SLURM = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
_PREFIXES = ("GPU-", "MIG-")


@dataclass(frozen=True)
class Visible:
    """The GPUs that this process may use."""

    gpus: tuple[Gpu, ...]
    unread: tuple[str, ...]  # others that are there and cannot be read, each with the reason
    reason: str  # why there is none, where there is none
    expected: bool  # whether machine, environment or Slurm says that there is one


def visible_gpus() -> Visible:
    """Return the GPUs this process may use, and where there is none, why.

    ``CUDA_VISIBLE_DEVICES`` is honoured, as numbers or as UUIDs, of GPUs or of MIG slices. CUDA is
    not initialised. An entry that NVML does not know may still be one for CUDA: it is a `Gpu`
    known by that entry alone.
    """
    wanted = os.environ.get(VISIBLE)
    entries = None if wanted is None else [entry.strip() for entry in wanted.split(",")]
    if entries and entries[0] in _HIDING:
        return Visible((), (), f"{VISIBLE} hides every GPU", expected=False)
    found = inventory()
    gpus = found.gpus if entries is None else tuple(_named(found, entries))
    why = "; ".join(found.unread) or found.driver or "the driver shows none"
    if found.gpus:
        why = f"the machine has {', '.join(map(str, found.gpus))}"
    asked = [f"{name}={value}" for name in (VISIBLE, *_SLURM) if (value := os.environ.get(name))]
    reason = f"{asked[0]} gives no NVIDIA GPU: {why}" if asked else f"no NVIDIA GPU: {why}"
    return Visible(gpus, found.unread, reason, expected=bool(asked or found.unread))


def numbered_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, in the order in which CUDA numbers them.

    Slices that CUDA does not show to who names none come last; where the driver does not answer
    the order is that of NVML.
    """
    if VISIBLE in os.environ:
        return list(visible_gpus().gpus)
    found = inventory()
    if _numbers_are_plain(found):
        return list(found.gpus)
    order = {uuid: number for number, uuid in enumerate(uuids_in_cuda_order() or ())}
    return sorted(found.gpus, key=lambda gpu: order.get(gpu.uuid.partition("-")[2], len(order)))


def select(gpus: Sequence[Gpu], entries: Sequence[str]) -> list[Gpu]:
    """Return those of `gpus` that the entries of ``CUDA_VISIBLE_DEVICES`` name, in their order.

    As in CUDA, a number is a place in `gpus`, a UUID may be shortened to a prefix, and the list
    ends at the first entry that can be none. A UUID that is none of theirs stands for itself.
    """
    chosen: list[Gpu] = []
    for entry in entries:
        if entry.isdecimal():
            matches = list(gpus[int(entry) : int(entry) + 1])
        elif entry.startswith(_PREFIXES):
            matches = [gpu for gpu in gpus if gpu.uuid.startswith(entry)] or [Gpu(entry, entry)]
        else:
            matches = []
        if len(matches) != 1:
            break
        chosen += [gpu for gpu in matches if gpu not in chosen]
    return chosen


def gpu_count(device: str) -> int:
    """Return how many GPUs jobs here share, under a `device` of the configuration."""
    return 0 if device == "cpu" else len(visible_gpus().gpus)


def shard_count(shards: int | str, device: str) -> int:
    """Return the number of shards; ``auto`` is one per visible GPU, else one."""
    return max(1, gpu_count(device)) if shards == "auto" else int(shards)


def _named(found: Inventory, entries: Sequence[str]) -> list[Gpu]:
    # Where of NVML there is nothing to learn CUDA may know what can be an entry.
    possible = takewhile(lambda x: x.isdecimal() or x.startswith(_PREFIXES), entries)
    themselves = [Gpu(entry, entry) for entry in dict.fromkeys(possible)]
    if not found.gpus:
        return themselves
    if any(entry.isdecimal() for entry in entries) and not _numbers_are_plain(found):
        uuids = uuids_in_cuda_order()
        if uuids is None:  # CUDA has an order, and NVML's would give a job what is another's
            return themselves
        known = {gpu.uuid.partition("-")[2]: gpu for gpu in found.gpus}
        return [known.get(uuid) or Gpu(f"GPU-{uuid}", f"GPU-{uuid}") for uuid in uuids]
    return select(found.gpus, entries)


def _numbers_are_plain(found: Inventory) -> bool:
    """Tell whether NVML and CUDA must number these GPUs alike."""
    whole = all(gpu.uuid.startswith("GPU-") for gpu in found.gpus) and not found.unread
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return whole and (by_bus or len({gpu.name for gpu in found.gpus}) == 1)
