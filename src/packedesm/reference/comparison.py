"""How far an array is from its reference, and how far it may be; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from packedesm.outputs import Array

# Largest relative L2 distance that passes under `auto`, coarsest format last. Rounding alone gives
# about 1e-6 in float32, 0.0014 in float16 and 0.011 in bfloat16 over the depth of ESM-2. Earlier
# layers have no more of it than the last: in bfloat16 residues of layers 0 to 6 of the trained 3M
# model 0.003, 0.002, 0.003, 0.004, 0.004, 0.005 and 0.006. Nor have the heads (3M; random weights
# of the 8M geometry): logits 0.003 and 0.012, log-likelihoods 0.003 and 0.007, contacts 0.013 and
# 0.014. A single contact may be off by more, 0.1 in bfloat16, and by 2e-5 in float32, as fair-esm's
# own are from float64; so all of a record are compared together here too.
AUTO_LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.02, "int8": 0.02}
# The default of verify.min_cosine, as the schema has it.
USUAL_COSINE = 0.9995

# Least magnitude (root mean square) that an error is related to, where that of the reference says
# little. A log probability near 0 is a probability near 1, of which only the difference tells: 1 is
# a nat. Where no residues touch, all contacts are near 0.
_LEAST = {"log_likelihood": 1.0, "pseudo_perplexity": 1.0, "contacts": 0.1}


@dataclass(frozen=True)
class Limits:
    """What passes."""

    min_cosine: float  # smallest cosine similarity; each residue's for "residue"
    max_relative_l2: float  # largest |x - reference| / |reference|, over all numbers of a record

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
        |x - reference| / |reference|, over all numbers; of a pseudo-perplexity that of its
        logarithm, the mean negative log probability. What is known by small numbers counts as of a
        least magnitude: log-likelihoods as of a nat, contacts as of 0.1.
    absolute
        The largest |x - reference| of one number, which passes whatever it is.
    """

    cosine: float | None
    relative_l2: float | None
    passed: bool
    absolute: float | None = None

    def within(self, limits: Limits) -> bool:
        """Tell whether it would pass these limits."""
        if self.relative_l2 is None:
            return False
        straight = self.cosine is None or self.cosine >= limits.min_cosine
        return straight and self.relative_l2 <= limits.max_relative_l2


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
    found = np.asarray(found, dtype=np.float64)
    if name == "pseudo_perplexity":
        with np.errstate(divide="ignore", invalid="ignore"):
            found, expected = np.log(found), np.log(expected)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Distance(None, None, passed=False)
    apart = found - expected
    scale = float(np.linalg.norm(expected))
    scale = max(scale, _LEAST.get(name or "", 0.0) * expected.size**0.5)
    distance = Distance(
        _cosine(found, expected) if array is None or array.output.layered else None,
        float(np.linalg.norm(apart)) / scale if scale else np.inf,
        passed=False,
        absolute=float(np.abs(apart).max()),
    )
    return replace(distance, passed=distance.within(limits))


def _cosine(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    # A vector of zeros points nowhere: its cosine counts as zero.
    cosines = (found * expected).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    return float(np.min(cosines))
