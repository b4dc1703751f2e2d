"""Watch the GPU while a job runs: utilisation, memory, power, clock and energy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pynvml

from packedesm.device.nvml import nvml

# What is read at each sample, by its name there.
_READINGS: dict[str, Callable[[Any], float]] = {
    "utilisation_percent": lambda gpu: pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
    "memory_bytes": lambda gpu: pynvml.nvmlDeviceGetMemoryInfo(gpu).used,
    "power_w": lambda gpu: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "sm_clock_mhz": lambda gpu: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
}


class GPUMonitor:
    """Context manager that samples one GPU through NVML about once a second.

    Measuring never fails the job: without a GPU the reason is recorded instead, and a reading that
    the driver refuses is None beside those that it gives.

    Parameters
    ----------
    uuid
        The GPU's UUID as NVML gives it; None where the job runs on a CPU.
    interval
        Seconds between samples.
    """

    def __init__(self, uuid: str | None, interval: float = 1.0) -> None:
        self._uuid = uuid
        self._interval = interval
        self._samples: list[dict[str, float | None]] = []
        self._reason: str | None = None
        self._refused: dict[str, str] = {}  # why, by the name of the reading
        self._energy_j: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gpu-monitor", daemon=True)

    def __enter__(self) -> GPUMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """Return what was seen, for ``run.json``.

        ``samples`` have seconds since the start, utilisation in percent, memory in bytes, power in
        watt and the SM clock in MHz; ``energy_j`` is joule over the whole time. What NVML refused
        is None, and ``reason`` says why.
        """
        refused = "; ".join(f"{name}: {why}" for name, why in self._refused.items())
        return {
            "available": any(s[name] is not None for s in self._samples for name in _READINGS),
            "reason": self._reason or (f"NVML: {refused}" if refused else None),
            "samples": self._samples,
            "energy_j": self._energy_j,
        }

    def _watch(self) -> None:
        if self._uuid is None:
            self._reason = "the job ran on a CPU"
            return
        try:
            with nvml():
                self._sample_until_stopped(pynvml.nvmlDeviceGetHandleByUUID(self._uuid))
        except pynvml.NVMLError as error:
            self._reason = f"NVML: {error}"

    def _sample_until_stopped(self, handle: Any) -> None:
        start = time.monotonic()
        energy = self._read("energy_j", _energy_j, handle)
        while True:
            seconds = time.monotonic() - start
            found = {name: self._read(name, read, handle) for name, read in _READINGS.items()}
            self._samples.append({"seconds": seconds, **found})
            if self._stop.wait(self._interval):
                break
        energy_now = self._read("energy_j", _energy_j, handle)
        if energy is not None and energy_now is not None:
            self._energy_j = energy_now - energy

    def _read(self, name: str, read: Callable[[Any], float], handle: Any) -> float | None:
        try:
            return read(handle)
        except pynvml.NVMLError as error:
            self._refused[name] = str(error)
            return None


def _energy_j(handle: Any) -> float:
    """Return what the GPU has used since its driver was loaded; GPUs before Volta do not tell."""
    return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
