"""Try a GPU before a job settles on it: one small product, and whether it is right."""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from packedesm.device.gpus import VISIBLE
from packedesm.device.nvml import Gpu
from packedesm.errors import first_line

# Python, torch and a CUDA context take seconds; where many jobs start from one slow disk, longer.
_SECONDS = 300
_SIDE = 256
_COMMAND = (sys.executable, "-P", "-m", "packedesm.device.trial")


def trial_in_a_process(gpu: Gpu) -> str | None:
    """Return why a job cannot use `gpu`, or None if it can.

    It is tried by a process that sees this GPU alone: one whose CUDA has failed, or is at work on
    another GPU, cannot turn to a further one. That costs the start of Python, torch and CUDA, a
    few seconds, so it is for those who have a choice.
    """
    process = subprocess.Popen(
        _COMMAND,
        env=os.environ | {VISIBLE: gpu.uuid},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"gave no answer within {_SECONDS} s"
    finally:
        process.kill()  # and not waited for: what hangs in a driver cannot be ended
    if process.returncode == 0:
        return None
    return printed.strip() or f"the process that tried it ended with status {process.returncode}"


def product_fault(device: torch.device) -> str | None:
    """Return why `device` cannot multiply two small matrices, or None if it can and does so right.

    The matrices hold small whole numbers, whose sums are exact in every number format.
    """
    numbers = torch.arange(_SIDE)
    a = (numbers[:, None] + 3 * numbers) % 7 - 3
    b = (5 * numbers[:, None] + numbers) % 11 - 5
    try:
        found = (a.to(device, torch.float32) @ b.to(device, torch.float32)).cpu()
    except Exception as error:  # torch and CUDA have many for a GPU that fails
        return first_line(error)
    wrong = int((found != a @ b).sum())
    return f"multiplies wrongly: {wrong} of {found.numel()} numbers" if wrong else None


if __name__ == "__main__":
    if (fault := product_fault(torch.device("cuda", 0))) is not None:
        print(fault)
        sys.exit(1)
