"""What a job does before its first pack: embed a few sampled proteins and see if they are right.

Everything is compared but what takes masked passes, which would make many of a few proteins.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.runner import AsyncInferenceRunner, PackTooLarge
from packedesm.errors import quote
from packedesm.options import LengthPolicy
from packedesm.outputs import RECORD, Array
from packedesm.packing.collator import VarlenCollator
from packedesm.packing.dataset import Protein as Packed
from packedesm.reference.comparison import Distance, Limits, compare
from packedesm.reference.vectors import Protein

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstCheck:
    """How far the first proteins are from their reference, in one number format.

    The worst is the one that is furthest off. Where half precision gave numbers that are not
    finite there is nothing to compare: such records are embedded in float32 later.
    """

    dtype: str
    limits: Limits
    compared: int  # arrays of a protein
    not_finite: int  # proteins
    worst: Distance
    worst_is: str  # in words: which record and array
    seconds: float = 0.0  # that it took

    @property
    def passed(self) -> bool:
        """Whether all that was compared passed."""
        return self.worst.passed

    @property
    def flawless(self) -> bool:
        """Whether it passed and everything could be compared."""
        return self.passed and not self.not_finite

    def in_words(self) -> str:
        """Return how far off the worst is, and what passes."""
        worst = self.worst
        if worst.relative_l2 is None:
            return f"{self.worst_is} is not finite"
        if not self.compared:
            return f"none of {self.not_finite} proteins is finite"
        said = f"{self.worst_is} has relative L2 {worst.relative_l2:.2g}"
        limit = f"{self.limits.max_relative_l2:.2g}"
        if worst.cosine is None:
            return f"{said}, where {limit} passes"
        return (
            f"{said} and cosine {worst.cosine:.6f}, where {limit} and "
            f"{self.limits.min_cosine:.6g} pass"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "dtype": self.dtype,
            "compared": self.compared,
            "not_finite": self.not_finite,
            "passed": self.passed,
            "cosine": self.worst.cosine,
            "relative_l2": self.worst.relative_l2,
            "min_cosine": self.limits.min_cosine,
            "max_relative_l2": self.limits.max_relative_l2,
        }


def first_check(
    runner: AsyncInferenceRunner,
    proteins: Sequence[Protein],
    policy: LengthPolicy,
    limits: Limits,
) -> FirstCheck:
    """Embed proteins as one pack, the way of all packs, and compare them with their reference.

    Parameters
    ----------
    runner
        With the model and the plan of the job.
    proteins
        At least one, with their reference.
    policy
        Which residues of them are embedded.
    """
    start, dtype = time.perf_counter(), runner.plan.dtype
    runner = _of_the_reference(runner, proteins)
    compared, not_finite = 0, 0
    worst, worst_is = Distance(1.0, 0.0, passed=True), ""
    for protein, vectors in _embedded(runner, proteins, policy):
        if not vectors and dtype != "float32":
            not_finite += 1
            continue
        for name, expected in protein.vectors.items():
            found = vectors.get(name, np.full_like(expected, np.nan))
            compared += 1
            distance = compare(found, expected, limits, Array.named(name))
            if _badness(distance) > _badness(worst) or not worst_is:
                worst = distance
                worst_is = f"{name} of {quote(protein.id)} (row {protein.row})"
    seconds = time.perf_counter() - start
    return FirstCheck(dtype, limits, compared, not_finite, worst, worst_is, seconds)


def _of_the_reference(
    runner: AsyncInferenceRunner, proteins: Sequence[Protein]
) -> AsyncInferenceRunner:
    """Return a runner that gives what there is a reference of.

    Where all that is asked for takes masked passes these are the logits of an unmasked one: they
    come from all that masked passes come from, and of those there would be many.
    """
    names = tuple(dict.fromkeys(name for protein in proteins for name in protein.vectors))
    if set(names) <= set(runner.plan.arrays):
        return runner
    plan = replace(runner.plan, arrays=names)
    return AsyncInferenceRunner(runner.model, plan, runner.device)


def _badness(distance: Distance) -> tuple[bool, float]:
    return not distance.passed, np.inf if distance.relative_l2 is None else distance.relative_l2


def _embedded(
    runner: AsyncInferenceRunner, proteins: Sequence[Protein], policy: LengthPolicy
) -> Iterator[tuple[Protein, dict[str, np.ndarray]]]:
    """Yield each protein with what its arrays hold, by name; none where a number is not finite.

    Proteins that the device's memory does not hold, alone, are left out: with the packs of the job
    there is a way for them.
    """
    packed = [
        Packed(
            place,
            protein.sequence[: protein.embedded_length].encode(),
            policy.windows(protein.length),
        )
        for place, protein in enumerate(proteins)
    ]
    finished: list[FinishedPack] = []
    try:
        runner.run([VarlenCollator()(packed)], finished.append)
    except PackTooLarge:
        if len(proteins) > 1:
            for protein in proteins:
                yield from _embedded(runner, [protein], policy)
        else:
            logger.warning("first check without row %d: out of memory", proteins[0].row)
        return
    (pack,) = finished
    yield from ((proteins[place], {}) for place in pack.deferred)
    parts = {name: _by_record(Array.named(name), pack) for name in pack.vectors}
    for place, row in enumerate(pack.rows):
        yield proteins[row], {name: part[place] for name, part in parts.items()}


def _by_record(array: Array, pack: FinishedPack) -> Sequence[np.ndarray]:
    """Return what an array of a pack holds of each record: a line, or so many as are its own."""
    lines = pack.vectors[array.name]
    if array.per == RECORD:
        return [*lines]
    return np.split(lines, np.cumsum(array.lines(pack.residues))[:-1])
