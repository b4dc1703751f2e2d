"""How far an array is from its reference, and how far it may be; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from packedesm.outputs import PAIR, Array

# Largest distance that passes under `auto`, coarsest format last. Rounding alone gives about 1e-6
# in float32, 0.0014 in float16 and 0.011 in bfloat16 over the depth of ESM-2. Earlier layers have
# less of it: the trained 3M model in bfloat16 0.003, 0.002, 0.003, 0.004, 0.004, 0.005 and 0.006 of
# residues of layers 0 to 6. So have logits (0.0007 there, 0.012 with random weights) and log
# probabilities (0.0025, 0.007).
AUTO_LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.02}
# The default of verify.min_cosine, as the schema has it.
USUAL_COSINE = 0.9995

# What the distance of an array is.
RELATIVE, ABSOLUTE = "relative_l2", "absolute"

# Logarithms of probabilities, or kept as their exponential. Near 0 they are of probabilities near
# 1, and of these only the difference tells: magnitudes below 1, a nat, count as of 1.
_LOGARITHMS = ("log_likelihood", "pseudo_perplexity")


@dataclass(frozen=True)
class Limits:
    """What passes."""

    min_cosine: float  # smallest cosine similarity; each residue's for "residue"
    # Largest |x - reference| / |reference|, over all numbers of a record; of contacts, which are
    # probabilities, the largest difference of one.
    max_relative_l2: float

    @classmethod
    def of(cls, min_cosine: float, max_relative_l2: float | str, dtypes: Iterable[str]) -> Limits:
        """Return the limits of an option, where ``auto`` is that of the coarsest of `dtypes`.

        Parameters
        ----------
        dtypes
            Number formats of computation and files.
        """
        if isinstance(max_relative_l2, str):
            max_relative_l2 = max(AUTO_LIMITS[dtype] for dtype in dtypes)
        return cls(min_cosine, max_relative_l2)


@dataclass(frozen=True)
class Distance:
    """How far what an array holds of one record is from the reference.

    The figures are None if a number is not finite or the shapes differ, which counts as missed.

    Attributes
    ----------
    cosine
        Of the worst line; None also where a line is no vector.
    relative_l2
        |x - reference| / |reference|, over all numbers. Of a pseudo-perplexity it is that of its
        logarithm, the mean negative log probability. The denominator of ``log_likelihood`` and
        ``pseudo_perplexity`` is at least one nat, on the root mean square.
    absolute
        The largest |x - reference| of one number.
    measure
        Which of the two decides: `RELATIVE`, or `ABSOLUTE` for probabilities.
    """

    cosine: float | None
    relative_l2: float | None
    passed: bool
    absolute: float | None = None
    measure: str = RELATIVE

    @property
    def error(self) -> float | None:
        """The figure that decides."""
        return self.absolute if self.measure == ABSOLUTE else self.relative_l2

    def within(self, limits: Limits) -> bool:
        """Tell whether it would pass these limits."""
        if self.error is None:
            return False
        straight = self.cosine is None or self.cosine >= limits.min_cosine
        return straight and self.error <= limits.max_relative_l2


def compare(
    found: np.ndarray, expected: np.ndarray, limits: Limits, array: Array | None = None
) -> Distance:
    """Compare what an array holds of one record with the reference.

    Parameters
    ----------
    found, expected : ndarray
        Of any floating-point format and of one shape: (D,) or (L, D), a vector or one for each
        residue; (L, C), (L,), (pairs,) or () of the other arrays. The figures are float64.
    array
        Which it is; None for one of vectors.
    """
    name = None if array is None else array.output.name
    measure = ABSOLUTE if array is not None and array.per == PAIR else RELATIVE
    found = np.asarray(found, dtype=np.float64)
    if name == "pseudo_perplexity":
        with np.errstate(divide="ignore", invalid="ignore"):
            found, expected = np.log(found), np.log(expected)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Distance(None, None, passed=False, measure=measure)
    apart = found - expected
    scale = float(np.linalg.norm(expected))
    if name in _LOGARITHMS:
        scale = max(scale, expected.size**0.5)
    distance = Distance(
        _cosine(found, expected) if array is None or array.output.layered else None,
        float(np.linalg.norm(apart)) / scale if scale else np.inf,
        passed=False,
        absolute=float(np.abs(apart).max()),
        measure=measure,
    )
    return replace(distance, passed=distance.within(limits))


def _cosine(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    # A vector of zeros points nowhere: its cosine counts as zero.
    cosines = (found * expected).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return float(np.min(cosines))
