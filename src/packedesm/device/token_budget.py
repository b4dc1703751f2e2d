"""The token budget from which on larger packs are no faster: measured on the GPU, remembered."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from packedesm.device.memory import out_of_memory
from packedesm.device.timing import own_stream, release_memory, time_repeats
from packedesm.esm2.geometry import VOCABULARY
from packedesm.esm2.measured import read_measured, write_measured

if TYPE_CHECKING:
    from packedesm.esm2.model import PackedESM2

logger = logging.getLogger(__name__)

_MEASURED = "token-budgets.json"
_SMALLEST = 4096
_LARGEST = 1 << 20
_REPEATS = 2
_WORTH = 1.02  # a budget twice as large must be faster by this factor


@dataclass(frozen=True)
class Workload:
    """What a shard gives to compute.

    Attributes
    ----------
    tokens, sequences
        Of the whole shard.
    packs
        Returns the lengths, in tokens, of the sequences of each of some packs, which are typical of
        all that the shard would be cut into with a given token budget, and none above it.
    """

    tokens: int
    sequences: int
    packs: Callable[[int], list[list[int]]]


def fastest_budget(model: PackedESM2, attention: str, most: int, workload: Workload) -> int:
    """Return the tokens per pack from which on throughput hardly rises, at most `most`.

    Budgets of 4,096 tokens and powers of two above are tried on packs of the shard itself, until
    one is no faster than the one before, or the next larger than the shard. The answer is kept in
    the user's cache folder, for this kind of GPU, model, dtype, backend and version of torch and
    for proteins of about this length: the jobs of a run make packs of one size, unless their
    proteins differ so much that another size may be the best.
    """
    if not workload.tokens:
        return min(_SMALLEST, most)
    most = min(most, _LARGEST)
    tried = _budgets(min(most, workload.tokens))
    device = model.embed_tokens.weight.device
    key = _key(model, attention, device, workload)
    known = read_measured(_MEASURED, ("budget", "tried"))
    kept = known.get(key, {"budget": 0, "tried": 0})
    damaged = kept["budget"] < min(_SMALLEST, kept["tried"])  # no search ends below
    if damaged or tried[-1] > kept["tried"]:
        with own_stream(device):
            budget = rising_until(
                lambda tokens: _rate(model, attention, workload.packs(tokens)), tried
            )
        release_memory(device)
        logger.info("measured: throughput hardly rises above %d tokens per pack", budget)
        # More room would change nothing, unless its end was the end of the search.
        known[key] = {"budget": budget, "tried": budget if budget == tried[-1] else _LARGEST}
        write_measured(_MEASURED, key, known[key])
    return min(int(known[key]["budget"]), most)


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


def _rate(model: PackedESM2, attention: str, packs: Sequence[Sequence[int]]) -> float:
    """Return tokens per second of forward passes over packs of sequences of these lengths.

    Without packs 0: one budget is as good as another.
    """
    if not packs:
        return 0.0
    seconds = sum(forward_seconds(model, attention, lengths) for lengths in packs)
    return sum(map(sum, packs)) / seconds


@torch.inference_mode()
def forward_seconds(
    model: PackedESM2,
    attention: str,
    lengths: Sequence[int],
    repeats: int = _REPEATS,
    warm_up: int = 1,
) -> float:
    """Return how long a pass takes over a pack of sequences of these lengths, in tokens.

    Parameters
    ----------
    attention
        A backend of `packedesm.esm2.attention`.
    repeats
        Passes that are timed, of which the median is taken.
    warm_up
        Passes before: the first one loads kernels.
    """
    device = model.embed_tokens.weight.device
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device)
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
    input_ids = torch.arange(sum(lengths), device=device) % (VOCABULARY - 10) + 4
    forward = partial(
        model.forward_packed,
        *(input_ids, positions, cu_seqlens, max(lengths)),
        attention=attention,
        lengths=lengths,
    )
    return statistics.median(time_repeats(forward, device, repeats=repeats, warm_up=warm_up))


def _key(model: PackedESM2, attention: str, device: torch.device, workload: Workload) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    size = "x".join(map(str, (model.geometry.layers, model.geometry.width, model.geometry.heads)))
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    kernels = "fused" + " with GELU" * model.fused_gelu if model.fused else "not fused"
    # What attention costs, and how often it is called, follows the length. From 256 to 512 tokens
    # are one class, with UniProt's mean of 352 in its middle, and so on by factors of two.
    length = 1 << (workload.tokens // workload.sequences).bit_length() - 1
    parts = (name, size, dtype, attention, kernels, f"{length} tokens a protein or more")
    return ", ".join([*parts, f"torch {torch.__version__}"])
