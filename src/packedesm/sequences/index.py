"""``index.parquet``: one row per record of the input, in its order."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from packedesm.files import atomic_path
from packedesm.sequences.arrow import numbers, texts, to_numpy

FLOAT32 = "float32"
"""The flag of records that half precision could not embed."""

LONG_FLAGS = {"truncate": "truncated", "window": "windowed"}
"""The flag of a record longer than ``max_length``, by the choice for long sequences."""

NULLABLE = "Int64"
"""The type of ``duplicate_of`` in pandas: whole numbers, or ``<NA>``."""

# What is known of a record when it is read; `duplicate_of` only when all have been.
READ_SCHEMA = pa.schema(
    {
        "row": pa.int64(),
        "id": pa.string(),
        "description": pa.string(),
        "file": pa.int32(),
        "record": pa.int64(),
        "length": pa.int32(),
        "embedded_length": pa.int32(),
        "sha256": pa.string(),
        "flags": pa.string(),
    }
)
_DUPLICATE_PLACE = READ_SCHEMA.get_field_index("flags")
_DUPLICATE_OF = pa.field("duplicate_of", pa.int64())
# What pandas itself would write: without it, pandas makes floats of a column with nulls.
_FOR_PANDAS = {
    "index_columns": [],
    "column_indexes": [],
    "columns": [
        {
            "name": _DUPLICATE_OF.name,
            "field_name": _DUPLICATE_OF.name,
            "pandas_type": "int64",
            "numpy_type": NULLABLE,
            "metadata": None,
        }
    ],
    "pandas_version": "2.0.0",
}
SCHEMA = READ_SCHEMA.insert(_DUPLICATE_PLACE, _DUPLICATE_OF).with_metadata(
    {"pandas": json.dumps(_FOR_PANDAS)}
)


def write_index(path: Path, tables: Iterable[pa.Table], duplicate_of: np.ndarray) -> None:
    """Write the index, atomically.

    Parameters
    ----------
    tables
        The records in order, with the columns of `READ_SCHEMA`.
    duplicate_of
        int64 (N,): the row whose vector a row receives, -1 for its own.
    """
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, SCHEMA, compression="zstd", use_dictionary=["flags"]) as writer,
    ):
        row = 0
        for table in tables:
            writer.write_table(with_duplicates(table, duplicate_of[row : row + len(table)]))
            row += len(table)


def with_duplicates(table: pa.Table, duplicate_of: np.ndarray) -> pa.Table:
    """Return a table of `READ_SCHEMA` with ``duplicate_of``, int64 (N,), where -1 is none."""
    column = numbers(duplicate_of, missing=duplicate_of < 0)
    field = SCHEMA.field(_DUPLICATE_PLACE)
    table = table.add_column(_DUPLICATE_PLACE, field, column)
    return table.replace_schema_metadata(SCHEMA.metadata)


def write_flagged(path: Path, source: Path, float32_rows: list[int]) -> None:
    """Write the index `source` to `path`, `float32_rows` and their duplicates flagged."""
    with atomic_path(path) as temporary:
        if not float32_rows:
            shutil.copyfile(source, temporary)
            return
        index = pq.ParquetFile(source)
        with pq.ParquetWriter(temporary, index.schema_arrow) as writer:
            for group in range(index.num_row_groups):
                writer.write_table(with_float32_flag(index.read_row_group(group), float32_rows))


def embedded_as(index: pa.Table) -> pa.ChunkedArray:
    """Return the row whose vector each record of an index has: its own, or its duplicate's."""
    return pc.coalesce(index["duplicate_of"], index["row"])


def length_counts(index: Path) -> np.ndarray:
    """Count the records of each length, in constant memory.

    Returns
    -------
    ndarray of int64, shape (longest + 1,)
        Element L is the number of records of L residues.
    """
    counts = np.zeros(1, dtype=np.int64)
    for batch in pq.ParquetFile(index).iter_batches(1 << 20, columns=["length"]):
        found = np.bincount(to_numpy(batch.column(0)), minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def read_ids(index: Path) -> Iterator[str]:
    """Yield the ids of all records in their order, in constant memory."""
    for batch in pq.ParquetFile(index).iter_batches(1 << 16, columns=["id"]):
        yield from batch.column(0).to_pylist()


def read_rows(index: Path, rows: np.ndarray, columns: list[str] | None = None) -> Iterator[dict]:
    """Yield some rows, ascending, with their columns; opens only the row groups that hold them."""
    file = pq.ParquetFile(index)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    groups = np.searchsorted(starts, rows, side="right") - 1
    for group in np.unique(groups):
        inside = rows[groups == group] - starts[group]
        yield from file.read_row_group(int(group), columns).take(numbers(inside)).to_pylist()


def with_float32_flag(index: pa.Table, float32_rows: list[int]) -> pa.Table:
    """Return an index with `float32_rows` and their duplicates flagged."""
    flagged = np.isin(to_numpy(embedded_as(index)), float32_rows).tolist()
    before = index["flags"].to_pylist()
    flags = [
        ",".join(filter(None, [flags, FLOAT32])) if marked else flags
        for flags, marked in zip(before, flagged, strict=True)
    ]
    column = index.schema.get_field_index("flags")
    return index.set_column(column, index.schema.field("flags"), texts(flags))
