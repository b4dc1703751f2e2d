"""Watch the GPU while a job runs: utilisation, memory, power, clock and energy."""

from __future__ import annotations

import threading
import time
from typing import Any

import pynvml


class GPUMonitor:
    """Context manager that samples one GPU through NVML about once a second.

    Measuring never fails the job: without a GPU, or where the driver refuses a reading, the
    reason is recorded instead.

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
        self._samples: list[dict[str, float]] = []
        self._reason: str | None = None
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
        watt and the SM clock in MHz; ``energy_j`` is joule over the whole time.
        """
        return {
            "available": bool(self._samples),
            "reason": self._reason,
            "samples": self._samples,
            "energy_j": self._energy_j,
        }

    def _watch(self) -> None:
        if self._uuid is None:
            self._reason = "the job ran on a CPU"
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self._reason = f"NVML: {error}"
            return
        try:
            self._sample_until_stopped(pynvml.nvmlDeviceGetHandleByUUID(self._uuid))
        except pynvml.NVMLError as error:
            self._reason = f"NVML: {error}"
        finally:
            pynvml.nvmlShutdown()

    def _sample_until_stopped(self, handle: Any) -> None:
        start = time.monotonic()
        energy = _energy_mj(handle)
        while True:
            self._samples.append({"seconds": time.monotonic() - start, **_sample(handle)})
            if self._stop.wait(self._interval):
                break
        energy_now = _energy_mj(handle)
        if energy is not None and energy_now is not None:
            self._energy_j = (energy_now - energy) / 1000


def _sample(handle: Any) -> dict[str, float]:
    return {
        "utilisation_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).used,
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
    }


def _energy_mj(handle: Any) -> int | None:
    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError_NotSupported:  # GPUs before Volta
        return None
