"""What masked passes cost, told before they start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packedesm.embedding.pack import PackStatistics
from packedesm.errors import plural
from packedesm.esm2.geometry import Geometry
from packedesm.outputs import Array
from packedesm.packing.items import Items

# Of the rate of the model's fastest matrix product, what whole passes reach: attention and what
# goes on between products take time, too.
_REACHED = 0.6
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


def masked_cost(
    items: Items, geometry: Geometry, done: Iterable[PackStatistics], peak: float | None
) -> tuple[int, float | None]:
    """Return how many masked passes are left of a job, and about how many seconds they take.

    Parameters
    ----------
    done
        The packs that earlier attempts have finished.
    peak
        The rate of matrix products, FLOP/s; None if it is not known, and then neither is the time.
    """
    counts = items.counts()
    packs = [pack for pack in done if pack.masked]
    left = counts["masked_passes"] - sum(pack.records for pack in packs)
    if peak is None or not left:
        return left, None
    share = 1 - sum(pack.tokens for pack in packs) / counts["masked_tokens"]
    return left, share * masked_flops(geometry, items) / (_REACHED * peak)


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
