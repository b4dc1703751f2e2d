"""Whether `torch.compile` fuses the layers of this job."""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from packedesm.errors import UserError

# Below this much arithmetic a job ends before compiling has paid: some 5 minutes of a GPU that
# sustains 300 TFLOP/s. An estimate: it was not measured.
WORTH_FLOPS = 1e17


class Compilation(NamedTuple):
    """Whether the layers are compiled, and why or why not, for log and report."""

    used: bool
    reason: str


def select_compilation(setting: bool | str, device: torch.device, flops: float) -> Compilation:
    """Return what the configuration's `compile` (true, false or ``auto``) means for a job.

    Parameters
    ----------
    device
        Where the model is.
    flops
        Arithmetic of the whole job.

    Raises
    ------
    UserError
        If compilation is asked for and impossible.
    """
    if setting is False:
        return Compilation(False, "switched off in the configuration")
    if setting == "auto":
        if device.type != "cuda":
            return Compilation(False, "chosen automatically, little is left to fuse on a CPU")
        if flops < WORTH_FLOPS:
            return Compilation(False, "chosen automatically, the job is too short for it to pay")
    obstacle = _obstacle(device)
    if obstacle is None:
        asked = "chosen automatically" if setting == "auto" else "asked for in the configuration"
        return Compilation(True, asked)
    if setting == "auto":
        return Compilation(False, f"chosen automatically, it is impossible: {obstacle}")
    raise UserError(f"compile: impossible on this machine ({obstacle}); set compile to auto")


def _obstacle(device: torch.device) -> str | None:
    """Return why nothing can be compiled for `device`, or None; tries it with one addition."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        torch.compile(lambda x: x + 1, dynamic=True, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # the compiler's, the linker's, Triton's, …: any means eager
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
