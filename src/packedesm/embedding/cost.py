"""What masked passes cost, told before they start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packedesm.device.memory import out_of_memory
from packedesm.device.token_budget import forward_seconds
from packedesm.embedding.pack import PackStatistics
from packedesm.embedding.runner import AsyncInferenceRunner
from packedesm.embedding.workload import trial_packs
from packedesm.errors import plural
from packedesm.esm2.geometry import Geometry
from packedesm.outputs import Array
from packedesm.packing.items import Items

# Of the rate of the model's fastest matrix product, what whole passes reach: attention and what
# goes on between products take time, too. From 0.4 to 0.75 were seen, so long jobs measure it.
_REACHED = 0.6
_TRIED = 0.01  # of the tokens of a job, so many may be passed to measure
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def job_flops(geometry: Geometry, items: Items) -> float:
    """Return the operations of all passes of a job, see `Geometry.flops`."""
    dataset = items.dataset
    records = dataset.policy.sequence_tokens(dataset.lengths)
    return items.unmasked * geometry.flops(records) + masked_flops(geometry, items)


def masked_flops(geometry: Geometry, items: Items) -> float:
    """Return the operations of the masked passes of a job, see `Geometry.flops`."""
    if items.copies is None:
        return 0.0
    dataset = items.dataset
    lengths = dataset.policy.window_tokens(dataset.lengths)
    return geometry.flops(lengths, times=dataset.embedded_lengths)


def passes_left(items: Items, done: Iterable[PackStatistics]) -> tuple[int, int]:
    """Return how many masked passes are left of a job, and how many tokens they have.

    Parameters
    ----------
    done
        The packs that earlier attempts have finished.
    """
    counts = items.counts()
    packs = [pack for pack in done if pack.masked]
    passes, tokens = sum(pack.records for pack in packs), sum(pack.tokens for pack in packs)
    return counts["masked_passes"] - passes, counts["masked_tokens"] - tokens


def masked_seconds(
    runner: AsyncInferenceRunner, items: Items, tokens: int, peak: float | None
) -> float | None:
    """Return about how long masked passes of so many `tokens` in all take; None if nobody knows.

    They are counted by their operations. The rate is that of a few packs of the job, which are
    passed and timed if they are a hundredth of it at most; of a shorter job it is what is usual.

    Parameters
    ----------
    peak
        The rate of matrix products, FLOP/s; None if it is not known.
    """
    geometry = runner.model.geometry
    packs = trial_packs(items, runner.plan.token_budget)
    rate = None if peak is None else _REACHED * peak
    if sum(map(sum, packs)) <= _TRIED * tokens:
        rate = _measured(runner, packs) or rate
    if rate is None:
        return None
    share = tokens / items.counts()["masked_tokens"]
    return share * masked_flops(geometry, items) / rate


def _measured(runner: AsyncInferenceRunner, packs: Sequence[Sequence[int]]) -> float | None:
    """Return the rate at which packs of sequences of these lengths pass, FLOP/s."""
    # The first pass on a GPU takes memory for all that follow.
    warm_up = int(runner.device.type == "cuda")
    try:
        seconds = [
            forward_seconds(runner.model, runner.plan.attention, pack, repeats=1, warm_up=warm_up)
            for pack in packs
        ]
    except Exception as error:
        if not out_of_memory(error):
            raise
        return None  # the job makes smaller packs of such
    return sum(map(runner.model.geometry.flops, packs)) / sum(seconds)


def in_words(names: Sequence[str], proteins: int, passes: int, seconds: float | None) -> str:
    """Return a line that tells how many masked passes there are, and about how long they take.

    Parameters
    ----------
    names
        Of all arrays of the run; those that come from masked passes are named.
    seconds
        None where nobody knows.
    """
    masked = [name for name in names if Array.named(name).masked]
    verb = "is" if len(masked) == 1 else "are"
    of = f"{' and '.join(masked)} of {plural(proteins, 'protein')}"
    passed = f"{passes:,} {'pass' if passes == 1 else 'passes'}, one for each residue"
    return f"{of} {verb} {passed}" + (f", about {_about(seconds)} here" if seconds else "")


def _about(seconds: float) -> str:
    """Return a time with two digits at most: nobody should take it for exact."""
    for unit, size in (("days", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 2 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(1.0, float(f'{seconds:.2g}')):.0f} s"
