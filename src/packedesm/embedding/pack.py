"""A finished pack: its vectors, the rows they belong to, and what it took; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from packedesm.files import write_table
from packedesm.options import SPECIAL_TOKENS
from packedesm.outputs import Array
from packedesm.sequences.arrow import to_numpy


@dataclass(frozen=True)
class PackStatistics:
    """What one pack was and took; a line of ``packs.tsv``.

    Records, residues and tokens are those of the vectors that it gave: a deferred record counts in
    the pack that embeds it again. A pack of masked copies counts copies as records, and of each the
    one residue that is masked.
    """

    pack: int
    records: int
    residues: int
    tokens: int
    token_budget: int  # that it was planned with, less than the job's if memory was short
    fill: float  # tokens over the token budget; a pack of one over-long record counts as full
    wait_seconds: float  # until the loader handed this pack over
    forward_seconds: float  # forward pass and pooling, on the device
    finished_seconds: float  # from the start of the run until its vectors were there
    passes: int  # forward passes: two if memory was short in the first
    deferred_records: int  # that are embedded again, in float32
    float32_records: int  # that were embedded in float32 since half precision could not
    masked: int = 0  # 1 if it is a pack of masked copies

    @property
    def passed(self) -> int:
        """Residues that went through the model: of a masked copy all, for the sake of one."""
        return self.tokens - SPECIAL_TOKENS * self.records if self.masked else self.residues


@dataclass(frozen=True)
class FinishedPack:
    """The vectors of one pack, with the rows that they belong to."""

    statistics: PackStatistics
    rows: np.ndarray  # int64 (R,), which items of the job the records are
    residues: np.ndarray  # int64 (R,), embedded residues of each record
    vectors: dict[str, np.ndarray]  # by array name: its lines of these records, back to back
    deferred: np.ndarray  # int64, records of the pack that got no vector: to be embedded again

    def defer(self, places: np.ndarray, tokens: np.ndarray) -> FinishedPack:
        """Return the pack without the vectors of some of its records.

        Parameters
        ----------
        places
            int, places of these records in `rows`.
        tokens
            int (R,), tokens of each record of the pack.
        """
        if not len(places):
            return self
        keep = np.ones(len(self.rows), bool)
        keep[places] = False
        statistics = replace(
            self.statistics,
            records=int(keep.sum()),
            residues=int(self.residues[keep].sum()),
            tokens=(kept := int(tokens[keep].sum())),
            fill=kept / max(self.statistics.token_budget, kept),
            deferred_records=self.statistics.deferred_records + len(places),
        )
        return FinishedPack(
            statistics,
            self.rows[keep],
            self.residues[keep],
            {
                name: array[np.repeat(keep, Array.named(name).lines(self.residues))]
                for name, array in self.vectors.items()
            },
            np.concatenate([self.deferred, self.rows[places]]),
        )


def total_fill(statistics: Iterable[PackStatistics]) -> float:
    """Return tokens over token budgets of all packs, at most 1; 0 where there is no pack."""
    pairs = [(pack.tokens, max(pack.token_budget, pack.tokens)) for pack in statistics]
    room = sum(budget for _tokens, budget in pairs)
    return sum(tokens for tokens, _budget in pairs) / room if room else 0.0


def not_finite(vectors: dict[str, np.ndarray], residues: np.ndarray) -> np.ndarray:
    """Return which records of a pack have NaN or infinity in a vector: int64, their places.

    Parameters
    ----------
    vectors
        By array name, the lines of the records back to back.
    residues
        int (R,), embedded residues of each record.
    """
    bad = [np.empty(0, np.int64)]
    for name, array in vectors.items():
        lines = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
        ends = np.cumsum(Array.named(name).lines(residues))
        bad.append(np.searchsorted(ends, lines, side="right"))
    return np.unique(np.concatenate(bad))


def write_packs(path: Path, statistics: Iterable[PackStatistics]) -> None:
    """Write ``packs.tsv``, one line per pack."""
    columns = [field.name for field in fields(PackStatistics)]
    write_table(path, columns, map(asdict, statistics))


def read_packs(path: Path) -> dict[str, np.ndarray]:
    """Read packs.tsv as one array per column, packs in the order in which they finished."""
    arrow = {"int": pa.int64(), "float": pa.float64()}  # annotations are texts in this file
    types = {field.name: arrow[str(field.type)] for field in fields(PackStatistics)}
    options = csv.ConvertOptions(column_types=types)
    table = csv.read_csv(
        path, parse_options=csv.ParseOptions(delimiter="\t"), convert_options=options
    )
    columns = {name: to_numpy(table[name]) for name in types}
    order = np.argsort(columns["finished_seconds"], kind="stable")
    return {name: column[order] for name, column in columns.items()}
