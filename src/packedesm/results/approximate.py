"""The nearest vectors by an approximate index, of FAISS: for more vectors than one waits for.

FAISS rather than usearch: its inverted file answers the same on every run, where a graph that
several threads build does not, and results may be exported to FAISS anyway.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from packedesm.errors import UserError, plural
from packedesm.results.nearest import Pairs, Vectors, blocks

logger = logging.getLogger(__name__)

EXTRA = "faiss"  # of the package, that brings FAISS
# Lists that a query looks into. Of 100,000 vectors of 5,000 made-up families, in 632 lists, 4 held
# 99.96% of the ten nearest; families of real proteins are not that far apart.
PROBED = 32
# Vectors for each list, from which the lists are found: at most, and what FAISS wants at least.
_TRAINED, _LEAST = 64, 39


def faiss() -> Any:
    """Return the module.

    Raises
    ------
    UserError
        If it is not installed.
    """
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it looks for itself
    try:
        import faiss
    except ImportError:
        raise UserError(
            "an approximate search needs FAISS, which is not installed; install it by: "
            f"pip install 'packedesm[{EXTRA}]'"
        ) from None
    return faiss


class Approximate:
    """An inverted file of FAISS: each vector in the list of the nearest of some centres.

    It holds what is left of each unit vector without their mean, in float16, and looks into
    `PROBED` of about 2 sqrt(N) lists; few vectors stand in one. Whom it finds is approximate;
    cosines and order are exact.

    Parameters
    ----------
    targets
        Among which to look.
    """

    def __init__(self, targets: Vectors) -> None:
        module, self._targets = faiss(), targets
        count, width = len(targets.distinct), targets.values.shape[1]
        lists = max(1, min(int(2 * count**0.5), count // _LEAST))
        kind = module.ScalarQuantizer.QT_fp16
        size = count * width * 2 / 2**30
        logger.info("an index of %d vectors in %s, %.1f GiB", count, plural(lists, "list"), size)
        # Of what is left of unit vectors the L2 distance orders as the cosine does.
        if lists == 1:
            index = module.IndexScalarQuantizer(width, kind, module.METRIC_L2)
        else:
            self._centres = module.IndexFlatL2(width)  # which the index does not keep alive
            index = module.IndexIVFScalarQuantizer(
                self._centres, width, lists, kind, module.METRIC_L2, False
            )
            index.nprobe = min(lists, PROBED)
            chosen = np.linspace(0, count - 1, min(count, _TRAINED * lists)).astype(np.int64)
            index.train(self._residuals(targets, targets.distinct[chosen]))
        for inside in blocks(count, targets.block):
            index.add(self._residuals(targets, targets.distinct[inside]))
        self._index = index

    def candidates(self, queries: Vectors, rows: np.ndarray, k: int) -> Pairs:
        """Return the nearest in the lists that are looked into."""
        targets = self._targets
        proteins = np.sort(targets.proteins[targets.distinct])
        own = np.searchsorted(proteins, queries.proteins[rows], side="right")
        own -= np.searchsorted(proteins, queries.proteins[rows], side="left")
        wanted = min(len(targets.distinct), k + int(own.max(initial=0)))
        if not (len(rows) and wanted):
            return Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
        _distances, found = self._index.search(self._residuals(queries, rows), wanted)
        places = np.repeat(np.arange(len(rows)), wanted)[found.ravel() >= 0]
        others = targets.distinct[found.ravel()[found.ravel() >= 0]]
        apart = queries.proteins[rows[places]] != targets.proteins[others]
        return Pairs(places[apart], others[apart])

    def _residuals(self, vectors: Vectors, rows: np.ndarray) -> np.ndarray:
        return (vectors.units(rows) - self._targets.centre).astype(np.float32)
