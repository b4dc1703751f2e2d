"""What the results of a run hold of one sampled record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache, partial

import numpy as np

from packedesm.alphabet import STANDARD
from packedesm.outputs import OUTPUTS, Array
from packedesm.paths import Paths
from packedesm.reference.vectors import Protein


class Stored:
    """The merged arrays of a sample, mapped from their files when they are asked for.

    Parameters
    ----------
    arrays
        Those that the run has made.
    """

    def __init__(self, paths: Paths, arrays: Iterable[Array]) -> None:
        self._paths = paths
        self._names = {array.name for array in arrays}
        self._load = cache(partial(np.load, mmap_mode="r"))

    def has(self, array: Array) -> bool:
        """Tell whether the run has made an array."""
        return array.name in self._names

    def of(self, array: Array, protein: Protein) -> np.ndarray:
        """Return the lines of an array that are those of a record.

        Returns
        -------
        ndarray
            One line where there is one per record; of masked marginals those at the protein's
            ``positions``. The number format is that of the file.
        """
        lines, offsets = self._load(self._paths.array(array.name)), self._paths.offsets(array.per)
        if offsets is None:
            return lines[protein.row]
        start, stop = self._load(offsets)[protein.row : protein.row + 2]
        mine = lines[start:stop]
        # A damaged offset may leave too few lines: that is for the comparison to say.
        places = [place for place in protein.positions if place < len(mine)]
        return mine[places] if array.masked else mine

    def whole_marginals(self, protein: Protein) -> np.ndarray | None:
        """Return the log probability of each residue while it is masked, float64 (L,).

        None if the run has no pseudo-perplexity or no masked marginals, or if these have no column
        for a residue of the protein.
        """
        if not {"masked_marginals", "pseudo_perplexity"} <= self._names:
            return None
        residues = protein.sequence[: protein.embedded_length]
        if not set(residues) <= set(STANDARD):
            return None
        columns = [STANDARD.index(residue) for residue in residues]
        whole = replace(protein, positions=tuple(range(len(columns))))
        lines = self.of(Array(OUTPUTS["masked_marginals"]), whole)
        if len(lines) != len(columns):
            return np.full(len(columns), np.nan)
        return lines[np.arange(len(columns)), columns].astype(np.float64)
