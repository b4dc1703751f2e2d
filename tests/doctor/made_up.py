"""The processes that the doctor asks, on a made-up machine: real processes, which can crash."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from packedesm.doctor import probe, trials
from tests.fake_cuda.nvml import Machine
from tests.forks import Forked


class Process(Forked):
    """A process that is forked from one that has loaded torch, used as the doctor uses its own."""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        try:
            return super().communicate(timeout)
        except subprocess.TimeoutExpired as error:
            error.output = Path(self._streams[0].name).read_bytes()
            raise

    def kill(self) -> None:
        self.send_signal(9)


def processes_on(machine: Machine):
    """Return what starts a process on this machine, in the place of `probe._started`."""
    return lambda arguments, environment: Process(_probed, machine, environment, arguments)


def _probed(machine: Machine, environment: dict[str, str], arguments: Sequence[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        machine.install(patch)
        os.environ.clear()
        os.environ.update(environment)
        patch.setattr(trials, "product_fault", lambda _device: _fault(machine))
        patch.setattr(trials, "_GPU", torch.device("cpu"))  # which can compute
        capability = lambda _device: machine.cuda().capability  # noqa: E731
        patch.setattr(torch.cuda, "get_device_capability", capability)
        return probe.main(arguments)


def _fault(machine: Machine) -> str | None:
    fault = machine.cuda().fault
    if fault == "dies":
        os.abort()
    if fault == "hangs":
        time.sleep(60)
    return fault
