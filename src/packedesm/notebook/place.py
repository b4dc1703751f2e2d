"""The device of a model that a program keeps: torch's own, and no lease on it."""

from __future__ import annotations

import torch

from packedesm.device.hardware import job_gpus
from packedesm.errors import UserError


def find_device(device: str | torch.device) -> torch.device:
    """Return a device as torch has it.

    A job leases a GPU, so that another takes the next one. A notebook that stands open for days
    would keep all jobs from its GPU, so it takes none.

    Parameters
    ----------
    device
        ``auto``, a GPU where there is one, the one that torch now uses; ``cpu``; ``cuda``; or a
        certain one, such as ``cuda:1``.

    Raises
    ------
    UserError
        If there is no such device.
    Fault
        If machine or environment show a GPU and torch can use none.
    """
    if str(device) == "auto":
        return _gpu() if job_gpus("auto")[0] else torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise UserError(
            f"device: {device!r} is none here; say auto, cpu, cuda, or a certain one such as cuda:0"
        ) from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type != "cuda":
        raise UserError(f"device: {found} is neither a CPU nor an NVIDIA GPU; say auto")
    job_gpus("cuda")
    if str(found) == "cuda":
        return _gpu()
    if found.index >= torch.cuda.device_count():
        raise UserError(
            f"device: there is no {found}; torch sees {torch.cuda.device_count()}, from cuda:0"
        )
    return found


def _gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
