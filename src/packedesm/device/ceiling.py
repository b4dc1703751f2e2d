"""How fast the device can multiply matrices: the ceiling of a job."""

from __future__ import annotations

import statistics

import torch
from torch import nn

from packedesm.device.timing import time_repeats
from packedesm.esm2.linear import linear

# Large enough to run at full speed, small enough to take a second: float32 on a laptop's core
# multiplies 1,024 x 1,024 in about 30 ms, a current GPU 8,192 x 8,192 in half precision in 1.5 ms.
_SIDE = {"cpu": 1024, "cuda": 8192}
_REPEATS = 9


def measure_matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return FLOP/s of a large square matrix product on random data, the median of nine.

    A product of two (n, n) matrices counts 2 n^3 operations. This is the peak that the job's
    own FLOP/s are set against; it is measured in the job because clocks and neighbours differ,
    and with the library that the model's layers use: on a CPU they differ by a factor of two.
    """
    side = _SIDE[device.type]
    a = torch.randn(side, side, device=device).to(dtype)
    layer = nn.Linear(side, side, bias=False, device=device, dtype=dtype).requires_grad_(False)
    # The first two load libraries and raise clocks.
    seconds = time_repeats(lambda: linear(a, layer), device, repeats=_REPEATS, warm_up=2)
    return 2 * side**3 / statistics.median(seconds)
