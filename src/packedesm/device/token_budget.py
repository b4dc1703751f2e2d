"""The token budget from which on larger packs are no faster: measured on the GPU, remembered."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch

from packedesm.device.memory import out_of_memory
from packedesm.device.timing import time_repeats
from packedesm.esm2.geometry import VOCABULARY
from packedesm.esm2.measured import read_measured, write_measured
from packedesm.esm2.model import PackedESM2

logger = logging.getLogger(__name__)

_MEASURED = "token-budgets.json"
_LENGTH = 352  # tokens of a typical protein, UniProt's mean
_SMALLEST = 4096
_LARGEST = 1 << 20
_REPEATS = 3
_WORTH = 1.02  # a budget twice as large must be faster by this factor


def fastest_budget(model: PackedESM2, attention: str, most: int) -> int:
    """Return the tokens per pack from which on throughput hardly rises, at most `most`.

    Budgets of 4,096 tokens and powers of two above are tried with made-up proteins of 352 tokens,
    until one is no faster than the one before. The answer is kept for this kind of GPU, model,
    dtype, backend and version of torch in the user's cache folder, so that all jobs make packs
    of one size.
    """
    most = min(most, _LARGEST)
    device = model.embed_tokens.weight.device
    key = _key(model, attention, device)
    known = read_measured(_MEASURED)
    if most > known.get(key, {}).get("tried", 0):
        tried = _budgets(most)
        budget = rising_until(lambda tokens: _rate(model, attention, tokens), tried)
        logger.info("measured: throughput hardly rises above %d tokens per pack", budget)
        # More room would change nothing, unless `most` ended the search.
        known[key] = {"budget": budget, "tried": most if budget == tried[-1] else _LARGEST}
        write_measured(_MEASURED, known)
    return min(known[key]["budget"], most)


def rising_until(rate: Callable[[int], float], budgets: Iterable[int]) -> int:
    """Return the last of the rising `budgets` that was worth it: faster than the one before.

    One that does not fit into memory, the first excepted, ends the search.
    """
    best, fastest = 0, 0.0
    for budget in budgets:
        try:
            found = rate(budget)
        except Exception as error:
            if not best or not out_of_memory(error):
                raise
            break
        if found < _WORTH * fastest:
            break
        best, fastest = budget, found
    return best


def _budgets(most: int) -> list[int]:
    doublings = range((_LARGEST // _SMALLEST).bit_length())
    return [_SMALLEST << n for n in doublings if _SMALLEST << n <= most] or [most]


@torch.inference_mode()
def _rate(model: PackedESM2, attention: str, tokens: int) -> float:
    """Return tokens per second of forward passes over `tokens` tokens, the median of three."""
    device = model.embed_tokens.weight.device
    starts = [*range(0, tokens, _LENGTH), tokens]
    cu_seqlens = torch.tensor(starts, dtype=torch.int32, device=device)
    lengths = [end - start for start, end in pairwise(starts)]
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    input_ids = torch.arange(tokens, device=device) % (VOCABULARY - 10) + 4
    forward = partial(
        model.forward_packed,
        *(input_ids, positions, cu_seqlens, max(lengths)),
        attention=attention,
        lengths=lengths,
    )
    # The first one loads kernels.
    seconds = time_repeats(forward, device, repeats=_REPEATS, warm_up=1)
    return tokens / statistics.median(seconds)


def _key(model: PackedESM2, attention: str, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    size = "x".join(map(str, (model.geometry.layers, model.geometry.width, model.geometry.heads)))
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    kernels = "fused" + " with GELU" * model.fused_gelu if model.fused else "not fused"
    return f"{name}, {size}, {dtype}, {attention}, {kernels}, torch {torch.__version__}"
