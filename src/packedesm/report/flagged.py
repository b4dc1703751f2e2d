"""Which records carry a flag: the first of each, from the index, in constant memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from packedesm.sequences.arrow import texts

SHOWN = 10  # of each flag
_COLUMNS = ["row", "id", "length", "embedded_length", "flags"]


def first_flagged(index: Path, counts: dict[str, int]) -> dict[str, list[dict[str, Any]]]:
    """Return the first `SHOWN` records of each flag, in the order of the input.

    Parameters
    ----------
    counts
        How many records have each flag; none is looked for beyond its last.

    Returns
    -------
    dict
        By flag, of each record its ``row``, ``id``, ``length`` and ``embedded_length``.
    """
    found: dict[str, list[dict[str, Any]]] = {flag: [] for flag, count in counts.items() if count}
    wanted = {flag: min(counts[flag], SHOWN) for flag in found}
    for batch in pq.ParquetFile(index).iter_batches(columns=_COLUMNS):
        missing = [flag for flag in found if len(found[flag]) < wanted[flag]]
        if not missing:
            break
        combinations = pc.unique(batch["flags"]).to_pylist()
        for flag in missing:
            with_flag = [text for text in combinations if flag in text.split(",")]
            having = batch.filter(pc.is_in(batch["flags"], texts(with_flag)))
            found[flag] += having.slice(0, wanted[flag] - len(found[flag])).to_pylist()
    return found
