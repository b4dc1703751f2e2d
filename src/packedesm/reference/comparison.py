"""How far a vector is from its reference, and how far it may be; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

# Largest relative L2 distance that passes under `auto`, coarsest format last. Rounding alone gives
# about 1e-6 in float32, 0.0014 in float16 and 0.011 in bfloat16 over the depth of ESM-2.
AUTO_LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.02}
# The default of verify.min_cosine, as the schema has it.
USUAL_COSINE = 0.9995


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
    """How far one vector, or those of the residues of one protein, are from the reference.

    The figures are None if a number is not finite or the shapes differ, which counts as missed.
    """

    cosine: float | None  # of the worst residue
    relative_l2: float | None  # over all numbers
    passed: bool

    def within(self, limits: Limits) -> bool:
        """Tell whether it would pass these limits."""
        if self.cosine is None or self.relative_l2 is None:
            return False
        return self.cosine >= limits.min_cosine and self.relative_l2 <= limits.max_relative_l2


def compare(found: np.ndarray, expected: np.ndarray, limits: Limits) -> Distance:
    """Compare one vector (D,), or the vectors (L, D) of a protein's residues, with the reference.

    Both may be of any floating-point format; the figures are float64.
    """
    found = np.asarray(found, dtype=np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return Distance(None, None, passed=False)
    relative_l2 = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    # A vector of zeros points nowhere: its cosine counts as zero.
    cosines = (found * expected).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    cosine = float(np.min(cosines))
    distance = Distance(cosine, relative_l2, passed=False)
    return replace(distance, passed=distance.within(limits))
