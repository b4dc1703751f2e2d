"""What masked passes give: marginals and pseudo-perplexity, from each pack to a shard's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from packedesm.errors import plural
from packedesm.outputs import MARGINALS, PERPLEXITY

if TYPE_CHECKING:
    from packedesm.embedding.pack import FinishedPack


def pseudo_perplexity(log_probabilities: np.ndarray, residues: np.ndarray) -> np.ndarray:
    """Return exp(-mean of the log probabilities) of each record: float32 (N,).

    The mean is over a record's residues, each predicted from all others while it alone is masked:
    the pseudo-perplexity of Salazar et al. (2020), "Masked Language Model Scoring", ACL 2020, of
    one sequence. 1 is a model that is always right; one that finds all 33 tokens alike has 33.

    Parameters
    ----------
    log_probabilities
        (sum of residues,): of the residue that stands there, natural logarithm, record by record.
    residues
        int (N,), of each record, at least 1.
    """
    if not len(residues):
        return np.empty(0, np.float32)
    starts = np.cumsum(residues) - residues
    sums = np.add.reduceat(log_probabilities.astype(np.float64), starts)
    with np.errstate(over="ignore"):  # of untrained weights, and then infinity says it
        return np.exp(-sums / residues).astype(np.float32)


class CopyWriter:
    """Receive what masked passes give of one shard, pack by pack, in any order.

    Parameters
    ----------
    arrays
        Where it goes, by name: ``masked_marginals`` (P, 20), ``pseudo_perplexity`` (N,), or one.
    residues
        int (N,), embedded residues of each record: P together, and as many copies.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], residues: np.ndarray) -> None:
        self._arrays = arrays
        self._residues = residues
        self._written = np.zeros(int(residues.sum()), bool)
        own = len(self._written) if PERPLEXITY in arrays else 0
        self._log_probabilities = np.empty(own, np.float32)

    def write(self, pack: FinishedPack) -> None:
        """Store what came of some copies; RuntimeError if one comes a second time."""
        lines = pack.rows - len(self._residues)
        if self._written[lines].any():
            raise RuntimeError(f"masked copies {lines[self._written[lines]].tolist()} came twice")
        if MARGINALS in self._arrays:
            self._arrays[MARGINALS][lines] = pack.vectors[MARGINALS]
        if PERPLEXITY in self._arrays:
            self._log_probabilities[lines] = pack.vectors[PERPLEXITY]
        self._written[lines] = True

    def close(self) -> None:
        """Write what is made of all copies together; RuntimeError if one is missing."""
        if not self._written.all():
            missing = np.flatnonzero(~self._written)
            raise RuntimeError(
                f"nothing came of {plural(len(missing), 'masked residue')}, first "
                f"{missing[:5].tolist()}"
            )
        if PERPLEXITY in self._arrays:
            found = pseudo_perplexity(self._log_probabilities, self._residues)
            self._arrays[PERPLEXITY][:] = found
