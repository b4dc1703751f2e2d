"""How fast the device multiplies the model's matrices: the ceiling of a job."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import torch
from torch import nn

from packedesm.device.memory import out_of_memory
from packedesm.device.timing import own_stream, release_memory, time_repeats
from packedesm.errors import first_line
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.residual import PRODUCTS, multiply, shape

logger = logging.getLogger(__name__)

# Each product is repeated for so long, where the job is long enough for it, in bursts that the host
# does not interrupt: four products keep a GPU busy for more than a second, and before that for its
# warm-up. A CPU has no clock that takes time to settle.
_SECONDS = {"cpu": 0.2, "cuda": 0.3}
_BURST_SECONDS = {"cpu": 0.0, "cuda": 0.1}
_BURSTS = 2  # at least
# Fewer tokens are another kind of product: on a CPU 512 of them reach 85 to 98% of the rate of
# 4,096, and 128 of them 80%, which is less than whole passes reach.
_TOKENS = 512
# Memory over that of one token's vector: the input, the wider one, and a product's output.
_VECTORS_PER_TOKEN = 1 + 4 + 4
_TOO_SHORT = "the job was too short for matrix products to be timed beside it"


class Peak(NamedTuple):
    """The rate of matrix products, FLOP/s; or None, and why it is not known."""

    flops: float | None
    reason: str | None = None


def measure_matmul_peak(model: PackedESM2, tokens: int, operations: float) -> Peak:
    """Return the sustained rate of the fastest of the model's products, on `tokens` tokens.

    A product of (T, K) and (K, N) counts 2 T K N operations. This is the peak that the job's own
    FLOP/s are set against. It is measured in the job because clocks and neighbours differ, with the
    job's weights, the tokens of its packs and the library that its layers use.

    The fastest product, not the mean by their operations: the four differ by 2 to 5%, and whole
    passes (8M, 35M and 150M, bfloat16 and float32, on a CPU with neighbours, at the tokens of full
    packs) came to 78 to 93% of the fastest and 80 to 98% of the mean, which leaves too little room
    for what a neighbour takes away.

    It fails no job: where memory is short fewer tokens are taken, and what else goes wrong becomes
    the reason.

    Parameters
    ----------
    tokens
        Of a full pack.
    operations
        The most that the measurement may take. Where that is little, only the smaller products
        are timed, then on fewer tokens; where it is too little, none.
    """
    device = model.embed_tokens.weight.device
    try:
        with own_stream(device):
            peak = _fastest(model, _fitting(model, tokens), operations)
    except Exception as error:
        why = "out of memory" if out_of_memory(error) else first_line(error)
        peak = Peak(None, f"matrix products could not be timed: {why}")
        logger.warning("the device's peak is unknown: %s", peak.reason)
    release_memory(device)  # only now: an exception's traceback holds tensors
    return peak


def _fitting(model: PackedESM2, tokens: int) -> int:
    """Return how many of the tokens the device's memory lets through the products at once."""
    weight, width = model.embed_tokens.weight, model.geometry.width
    if weight.device.type == "cpu":
        return tokens
    free, _total = torch.cuda.mem_get_info(weight.device)
    return max(1, min(tokens, free // 2 // (_VECTORS_PER_TOKEN * width * weight.itemsize)))


@torch.inference_mode()
def _fastest(model: PackedESM2, tokens: int, operations: float) -> Peak:
    products = sorted(_products(model), key=_size)
    least = 2 * _size(products[0]) * (1 + _BURSTS)  # for a token
    tokens = min(tokens, max(_TOKENS, int(operations / least)))
    if operations < least * tokens:
        return Peak(None, _TOO_SHORT)
    while operations < 2 * tokens * _weights(products) * (1 + _BURSTS):
        products.pop()
    calls = int(operations / (2 * tokens * _weights(products)))
    x = _input(model, tokens)
    return Peak(max(_rate(x, product, calls) for product in products))


def _weights(products: list[nn.Module]) -> int:
    return sum(_size(product) for product in products)


def _size(product: nn.Module) -> int:
    return shape(product)[0] * shape(product)[1]


def _products(model: PackedESM2) -> list[nn.Module]:
    return [getattr(model.layers[0], kind) for kind in PRODUCTS]


def _input(model: PackedESM2, tokens: int) -> torch.Tensor:
    """Return (tokens, width): the embeddings, over and over. Random numbers would cost more."""
    weight = model.embed_tokens.weight
    return weight.repeat(math.ceil(tokens / len(weight)), 1)[:tokens]


def _rate(x: torch.Tensor, product: nn.Module, calls: int) -> float:
    """Return the FLOP/s of the fastest burst, after at most so many `calls` in all."""
    device, count = x.device, 1
    x = x.repeat(1, shape(product)[1] // x.shape[1])

    def burst() -> None:
        for _ in range(count):
            multiply(x, product)

    # The first loads libraries and raises clocks.
    spent, calls = time_repeats(burst, device, repeats=1, warm_up=1), calls - 2
    count = math.ceil(_BURST_SECONDS[device.type] / spent[0])
    count = max(1, min(count, calls // (1 + _BURSTS)))
    if count > 1:
        time_repeats(burst, device, repeats=0, warm_up=1)
        spent, calls = [], calls - count
    while calls >= count and (len(spent) < _BURSTS or sum(spent) < _SECONDS[device.type]):
        spent += time_repeats(burst, device, repeats=1, warm_up=0)
        calls -= count
    return 2 * len(x) * _size(product) * count / min(spent)
