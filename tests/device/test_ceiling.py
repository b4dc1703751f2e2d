"""What the job's own rate is set against."""

import pytest
import torch
from torch import nn

from packedesm.device.ceiling import measure_matmul_peak
from packedesm.esm2.linear import linear


def operators(work) -> set[str]:
    with torch.profiler.profile() as profile:
        work()
    return {event.key for event in profile.key_averages()}


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_peak_is_taken_with_the_library_that_layers_use(dtype, monkeypatch):
    monkeypatch.setattr("packedesm.device.ceiling._SIDE", {"cpu": 128})
    layer = nn.Linear(8, 8, bias=False, dtype=dtype).requires_grad_(False)
    used = operators(lambda: linear(torch.randn(8, 8).to(dtype), layer))
    assert used - {"aten::randn", "aten::to"}
    assert used <= operators(lambda: measure_matmul_peak(torch.device("cpu"), dtype))
