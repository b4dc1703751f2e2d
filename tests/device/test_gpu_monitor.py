import time

import pynvml
import pytest

from packedesm.device.gpu_monitor import GPUMonitor
from packedesm.device.gpus import visible_gpus
from tests.fake_cuda.nvml import REFUSALS, Machine, MadeUpGpu


def test_a_cpu_job_records_why_there_is_nothing_to_see():
    with GPUMonitor(None) as monitor:
        pass
    summary = monitor.summary()
    assert summary == {
        "available": False,
        "reason": "the job ran on a CPU",
        "samples": [],
        "energy_j": None,
    }


def test_a_gpu_that_cannot_be_read_does_not_fail_the_job():
    with GPUMonitor("GPU-00000000-0000-0000-0000-000000000000") as monitor:
        pass
    summary = monitor.summary()
    assert not summary["available"]
    assert summary["reason"].startswith("NVML: ")


READINGS = {
    "utilisation_percent": ("nvmlDeviceGetUtilizationRates", 97),
    "memory_bytes": ("nvmlDeviceGetMemoryInfo", 5 << 30),
    "power_w": ("nvmlDeviceGetPowerUsage", 612.0),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo", 1980),
}
ENERGY = "nvmlDeviceGetTotalEnergyConsumption"


def watched(monkeypatch, **facts) -> dict:
    gpu = MadeUpGpu("a", used=5 << 30, **facts)
    Machine([gpu]).install(monkeypatch)
    with GPUMonitor(gpu.uuid, interval=0.01) as monitor:
        time.sleep(0.05)
    return monitor.summary()


def test_samples_hold_what_nvml_says(monkeypatch):
    summary = watched(monkeypatch)
    assert (summary["available"], summary["reason"], summary["energy_j"]) == (True, None, 450)
    assert len(summary["samples"]) >= 2
    for sample in summary["samples"]:
        assert {name: sample[name] for name in READINGS} == {n: v for n, (_, v) in READINGS.items()}


@pytest.mark.parametrize("refused", READINGS)
@pytest.mark.parametrize("error", REFUSALS)
def test_one_refused_reading_is_none_beside_the_others(refused, error, monkeypatch):
    summary = watched(monkeypatch, refused={READINGS[refused][0]: error})
    assert (summary["available"], summary["energy_j"]) == (True, 450)
    assert summary["reason"] == f"NVML: {refused}: {pynvml.NVMLError(error)}"
    for sample in summary["samples"]:
        expected = {n: None if n == refused else v for n, (_, v) in READINGS.items()}
        assert {name: sample[name] for name in READINGS} == expected


@pytest.mark.parametrize("error", REFUSALS)
def test_refused_energy_costs_no_sample(error, monkeypatch):
    summary = watched(monkeypatch, refused={ENERGY: error})
    assert summary["energy_j"] is None
    assert summary["reason"] == f"NVML: energy_j: {pynvml.NVMLError(error)}"
    assert all(sample["power_w"] == 612 for sample in summary["samples"])


def test_a_gpu_that_tells_nothing_is_not_measured(monkeypatch):
    functions = (ENERGY, *(function for function, _ in READINGS.values()))
    refused = dict.fromkeys(functions, pynvml.NVML_ERROR_NO_PERMISSION)
    summary = watched(monkeypatch, refused=refused)
    assert not summary["available"]
    assert "power_w: Insufficient Permissions" in summary["reason"]


@pytest.mark.gpu
def test_a_gpu_is_sampled_while_the_job_runs():
    visible = visible_gpus()
    if not visible.gpus:
        pytest.skip(visible.reason)
    with GPUMonitor(visible.gpus[0].uuid, interval=0.1) as monitor:
        time.sleep(0.5)
    summary = monitor.summary()
    assert len(summary["samples"]) >= 3
    assert all(0 <= sample["utilisation_percent"] <= 100 for sample in summary["samples"])
    assert all(sample["power_w"] > 0 for sample in summary["samples"])
