import time

import pytest

from packedesm.device.gpu_monitor import GPUMonitor
from packedesm.device.gpus import visible_gpus


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


@pytest.mark.gpu
def test_a_gpu_is_sampled_while_the_job_runs():
    gpus, reason = visible_gpus()
    if not gpus:
        pytest.skip(reason)
    with GPUMonitor(gpus[0].uuid, interval=0.1) as monitor:
        time.sleep(0.5)
    summary = monitor.summary()
    assert len(summary["samples"]) >= 3
    assert all(0 <= sample["utilisation_percent"] <= 100 for sample in summary["samples"])
    assert all(sample["power_w"] > 0 for sample in summary["samples"])
