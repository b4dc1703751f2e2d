"""What a job does before its first pack: embed a few sampled proteins and see if they are right."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packedesm.embedding.pack import FinishedPack
from packedesm.embedding.runner import AsyncInferenceRunner, PackTooLarge
from packedesm.errors import quote
from packedesm.options import LengthPolicy
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
    compared: int  # vectors
    not_finite: int  # proteins
    worst: Distance
    worst_is: str  # in words: which record and output

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
        if self.worst.relative_l2 is None:
            return f"{self.worst_is} is not finite"
        if not self.compared:
            return f"none of {self.not_finite} proteins is finite"
        return (
            f"{self.worst_is} has relative L2 {self.worst.relative_l2:.2g} and cosine "
            f"{self.worst.cosine:.6f}, where {self.limits.max_relative_l2:.2g} and "
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
    dtype, outputs = runner.plan.dtype, runner.plan.arrays
    compared, not_finite = 0, 0
    worst, worst_is = Distance(1.0, 0.0, passed=True), ""
    for protein, vectors in _embedded(runner, proteins, policy):
        if not vectors and dtype != "float32":
            not_finite += 1
            continue
        for output in outputs:
            expected = protein.vectors[output]
            found = vectors.get(output, np.full_like(expected, np.nan))
            compared += 1
            distance = compare(found, expected, limits)
            if _badness(distance) > _badness(worst) or not worst_is:
                worst = distance
                worst_is = f"{output} of {quote(protein.id)} (row {protein.row})"
    return FirstCheck(dtype, limits, compared, not_finite, worst, worst_is)


def _badness(distance: Distance) -> tuple[bool, float]:
    return not distance.passed, np.inf if distance.relative_l2 is None else distance.relative_l2


def _embedded(
    runner: AsyncInferenceRunner, proteins: Sequence[Protein], policy: LengthPolicy
) -> Iterator[tuple[Protein, dict[str, np.ndarray]]]:
    """Yield each protein with its vectors by output; none where a number is not finite.

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
    ends = np.cumsum(pack.residues)
    for place, row in enumerate(pack.rows):
        vectors = {
            output: array[ends[place] - pack.residues[place] : ends[place]]
            if output == "residue"
            else array[place]
            for output, array in pack.vectors.items()
        }
        yield proteins[row], vectors
