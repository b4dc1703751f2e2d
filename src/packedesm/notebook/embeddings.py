"""What `packedesm.open` gives of a run, in memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from packedesm.esm2.registry import Checkpoint
from packedesm.options import EmbedPlan
from packedesm.outputs import PAIR, RECORD, RESIDUE, Array
from packedesm.paths import Paths
from packedesm.results.reader import Results
from packedesm.sequences.arrow import to_numpy
from packedesm.sequences.index import with_float32_flag

if TYPE_CHECKING:
    import pandas as pd

    from packedesm.sequences.records import Records

_WHERE = Paths("embeddings in memory")  # for messages; nothing is there


class Embeddings(Results):
    """The vectors of some sequences in memory, with the interface of `packedesm.open`.

    Arrays are the caller's: they can be written to.

    Parameters
    ----------
    records
        What was embedded.
    checkpoint, plan
        By which model and how.
    arrays
        By name, the lines of `Records.unique` in order; those of their duplicates are added.
    float32_rows
        Rows that half precision could not hold.

    Attributes
    ----------
    manifest : dict
        Of ``manifest.json`` of a run what holds in memory: records, model, arrays, and how they
        were computed.
    """

    def __init__(
        self,
        records: Records,
        checkpoint: Checkpoint,
        plan: EmbedPlan,
        arrays: Mapping[str, np.ndarray],
        float32_rows: list[int],
    ) -> None:
        self._paths = _WHERE
        self._records = records
        self._float32_rows = float32_rows
        residues = to_numpy(records.table["embedded_length"]).astype(np.int64)
        self._mapped = {
            name: _of_all_rows(Array.named(name), array, records, residues)
            for name, array in arrays.items()
        }
        depth = checkpoint.geometry.layers
        self.manifest = {
            "records": len(records),
            "residues": int(residues.sum()),
            "model": checkpoint.facts(),
            "dtype": plan.dtype,
            "attention": plan.attention,
            "flags": records.flags,
            "arrays": {f"{n}.npy": _facts(n, a, depth) for n, a in self._mapped.items()},
        }
        for per, name in ((RESIDUE, "residue_offsets"), (PAIR, "contacts_offsets")):
            of_kind = (array for array in map(Array.named, arrays) if array.per == per)
            if (array := next(of_kind, None)) is not None:
                self._mapped[name] = np.concatenate(([0], np.cumsum(array.lines(residues))))

    def __repr__(self) -> str:
        made = ", ".join(
            f"{name.removesuffix('.npy')} {tuple(facts['shape'])} {facts['dtype']}"
            for name, facts in self.manifest["arrays"].items()
        )
        return f"<Embeddings of {len(self)} sequences: {made}>"

    @cached_property
    def index(self) -> pd.DataFrame:
        """One line per record, in order, with the columns of ``index.parquet``."""
        table = self._records.index
        if self._float32_rows:
            table = with_float32_flag(table, self._float32_rows)
        return table.to_pandas()

    @cached_property
    def ids(self) -> list[str]:
        """The records' ids, in order."""
        return self._records.table["id"].to_pylist()


def _of_all_rows(
    array: Array, lines: np.ndarray, records: Records, residues: np.ndarray
) -> np.ndarray:
    """Return the lines of every row; those of duplicates are copies of the first's."""
    own, unique = records.duplicate_of < 0, records.unique
    if own.all():
        return lines
    source = np.searchsorted(unique, np.where(own, np.arange(len(records)), records.duplicate_of))
    if array.per == RECORD:
        return lines[source]
    counts = array.lines(residues)
    begins = np.concatenate(([0], np.cumsum(counts[unique])))[source]
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return lines[np.repeat(begins, counts) + within]


def _facts(name: str, found: np.ndarray, depth: int) -> dict[str, Any]:
    """Return what a manifest says of an array."""
    array = Array.named(name)
    last = depth if array.output.layered else None
    return {
        "shape": list(found.shape),
        "dtype": str(found.dtype),
        "output": array.output.name,
        "layer": last if array.layer is None else array.layer,
        "columns": list(array.output.columns) if array.output.columns else None,
    }
