"""Numbers and texts to Arrow's columns and back, without pandas.

pyarrow's own conversions (`pyarrow.array`, `to_numpy`, `read_table`) first ask whether they deal
with pandas, and import it to find out: a quarter of a second in every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def numbers(array: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Return integers or floats (N,) as a column; `missing`, bool (N,), says which are null."""
    array = np.ascontiguousarray(array)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    kind = pa.from_numpy_dtype(array.dtype)
    return pa.Array.from_buffers(kind, len(array), [valid, pa.py_buffer(array)])


def texts(values: Sequence[str]) -> pa.StringArray:
    """Return texts, of less than 2 GB together, as a column."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, encoded), np.int32, len(encoded)), out=offsets[1:])
    buffers = pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))
    return pa.StringArray.from_buffers(len(encoded), *buffers)


def to_numpy(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return the numbers of a column without nulls, shape (N,); they may be read-only."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return np.from_dlpack(column)


def read_columns(path: Path, columns: Iterable[str]) -> pa.Table:
    """Read some columns of a Parquet file."""
    return pq.ParquetFile(path).read(columns=list(columns))
