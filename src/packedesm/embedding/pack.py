"""A finished pack: its vectors, the rows they belong to, and what it took; without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from packedesm.files import write_table
from packedesm.sequences.arrow import to_numpy


@dataclass(frozen=True)
class PackStatistics:
    """What one pack was and took; a line of ``packs.tsv``."""

    pack: int
    records: int
    residues: int
    tokens: int
    fill: float  # tokens over the token budget; a pack of one over-long record counts as full
    wait_seconds: float  # until the loader handed this pack over
    forward_seconds: float  # forward pass and pooling, on the device
    finished_seconds: float  # from the start of the run until its vectors were there
    splits: int  # forward passes; more than one if the pack was split for want of memory
    float32_records: int  # that were embedded in float32 instead of half precision


@dataclass(frozen=True)
class FinishedPack:
    """The vectors of one pack, with the rows that they belong to."""

    statistics: PackStatistics
    rows: np.ndarray  # int64 (R,), the records' places in the shard
    residues: np.ndarray  # int64 (R,), embedded residues of each record
    vectors: dict[str, np.ndarray]  # per output (R, D), for residue (P, D)
    float32_rows: np.ndarray  # int64, those of `rows` that half precision could not embed


def not_finite(vectors: dict[str, np.ndarray], residues: np.ndarray) -> np.ndarray:
    """Return which records of a pack have NaN or infinity in a vector: int64, their places.

    Parameters
    ----------
    vectors
        Per output (R, D), for ``residue`` (P, D).
    residues
        int (R,), embedded residues of each record.
    """
    bad = [np.empty(0, np.int64)]
    for output, array in vectors.items():
        lines = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if output == "residue":
            lines = np.searchsorted(np.cumsum(residues), lines, side="right")
        bad.append(lines)
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
