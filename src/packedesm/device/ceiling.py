"""How fast the device multiplies the model's matrices: the ceiling of a job."""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
from torch import nn

from packedesm.device.memory import out_of_memory
from packedesm.device.timing import own_stream, release_memory, time_repeats
from packedesm.errors import first_line
from packedesm.esm2.linear import linear
from packedesm.esm2.model import PackedESM2

logger = logging.getLogger(__name__)

# Each product is repeated for so long, in bursts that the host does not interrupt: four products
# keep a GPU busy for more than a second, and before that for its warm-up. A CPU has no clock that
# takes time to settle: two passes over the products are what a large square product took, and more
# are only for those so small that a clock hardly sees them.
_SECONDS = {"cpu": 0.004, "cuda": 0.3}
_BURST_SECONDS = {"cpu": 0.0, "cuda": 0.1}
_BURSTS = 2  # at least
_CPU_FLOPS = 23.6e9  # in all; and no fewer tokens than this, which would be another kind of product
_CPU_TOKENS = 64
# Memory over that of one token's vector: the input, the wider one, and a product's output.
_VECTORS_PER_TOKEN = 1 + 4 + 4


class Peak(NamedTuple):
    """The rate of matrix products, FLOP/s; or None, and why it is not known."""

    flops: float | None
    reason: str | None = None


def measure_matmul_peak(model: PackedESM2, tokens: int) -> Peak:
    """Return the sustained rate of the fastest of the model's products, on `tokens` tokens.

    Those of the largest pack: a pack's products are no faster with more tokens than it has.

    A product of (T, K) and (K, N) counts 2 T K N operations. This is the peak that the job's own
    FLOP/s are set against. It is measured in the job because clocks and neighbours differ, with the
    job's weights and the library that its layers use: no other product could be the faster one.

    It fails no job: where memory is short fewer tokens are taken, and what else goes wrong becomes
    the reason.
    """
    device = model.embed_tokens.weight.device
    try:
        with own_stream(device):
            peak = Peak(_fastest(model, _fitting(model, tokens)))
    except Exception as error:
        why = "out of memory" if out_of_memory(error) else first_line(error)
        peak = Peak(None, f"matrix products could not be timed: {why}")
        logger.warning("the device's peak is unknown: %s", peak.reason)
    release_memory(device)  # only now: an exception's traceback holds tensors
    return peak


def _fitting(model: PackedESM2, tokens: int) -> int:
    """Return how many of the tokens go through the products at once."""
    weight, width = model.embed_tokens.weight, model.geometry.width
    if weight.device.type == "cpu":
        layer = sum(2 * product.weight.numel() for product in _products(model))
        return min(tokens, max(_CPU_TOKENS, int(_CPU_FLOPS / layer / (1 + _BURSTS))))
    free, _total = torch.cuda.mem_get_info(weight.device)
    return max(1, min(tokens, free // 2 // (_VECTORS_PER_TOKEN * width * weight.itemsize)))


@torch.inference_mode()
def _fastest(model: PackedESM2, tokens: int) -> float:
    weight, width = model.embed_tokens.weight, model.geometry.width
    x = torch.randn(tokens, width, dtype=weight.dtype, device=weight.device)
    inputs = {width: x, 4 * width: x.repeat(1, 4)}
    return max(_rate(inputs[product.in_features], product) for product in _products(model))


def _products(model: PackedESM2) -> list[nn.Linear]:
    layer: Any = model.layers[0]
    return [layer.qkv, layer.attention_out, layer.fc1, layer.fc2]


def _rate(x: torch.Tensor, product: nn.Linear) -> float:
    device = x.device
    count = 1

    def burst() -> None:
        for _ in range(count):
            linear(x, product)

    # The first loads libraries and raises clocks.
    (seconds,) = time_repeats(burst, device, repeats=1, warm_up=1)
    if _BURST_SECONDS[device.type]:
        count = math.ceil(_BURST_SECONDS[device.type] / seconds)
        time_repeats(burst, device, repeats=0, warm_up=1)
        spent = []
    else:
        spent = [seconds]
    while len(spent) < _BURSTS or sum(spent) < _SECONDS[device.type]:
        spent += time_repeats(burst, device, repeats=1, warm_up=0)
    return 2 * len(x) * product.weight.numel() * count * len(spent) / sum(spent)
