"""The ``.fai`` of a shard: faidx's index of where each record's sequence lies."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from packedesm.sequences.arrow import numbers, to_numpy

_COLUMNS = ("name", "length", "offset", "linebases", "linewidth")


class Faidx(NamedTuple):
    """Columns of a shard's ``.fai``, each int64 (N,), in the order of its records."""

    rows: np.ndarray  # the records' names: rows of the whole input
    lengths: np.ndarray  # residues
    offsets: np.ndarray  # bytes from the start of the FASTA to the first residue


def write_faidx(path: Path, faidx: Faidx) -> None:
    """Write the index of a FASTA whose sequences have one line each."""
    rows, lengths, offsets = faidx
    columns = [rows, lengths, offsets, lengths, lengths + 1]
    table = pa.Table.from_arrays([numbers(column) for column in columns], names=_COLUMNS)
    options = csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    csv.write_csv(table, path, options)


def read_faidx(path: Path) -> Faidx:
    """Read the index of a shard that `packedesm.sequences.shards` wrote; it may be empty."""
    if path.stat().st_size == 0:  # a shard without records: more shards than proteins
        return Faidx(*(np.zeros(0, np.int64) for _ in Faidx._fields))
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=_COLUMNS),
        parse_options=csv.ParseOptions(delimiter="\t"),
    )
    return Faidx(*(to_numpy(table[name]) for name in _COLUMNS[:3]))
