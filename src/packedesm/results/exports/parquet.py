"""Parquet: a table with a line for each record, and in it the vectors.

The columns of the index, and one for each array: a list of fixed size, of a scalar a number. Always
float32: half precision is new to Parquet, and R's arrow and older duckdb do not read it. What was
float16 takes no more room for that: its bytes are split by place and compressed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from packedesm.outputs import Array
from packedesm.paths import Paths
from packedesm.progress import Progress
from packedesm.results.exports.source import Source
from packedesm.results.index_file import whole
from packedesm.sequences.arrow import numbers

_GROUP_BYTES = 1 << 25  # of vectors, in one group of rows: what readers hold at once


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one file for all arrays."""
    return {"per_protein.parquet": list(arrays)}


def write(path: Path, source: Source) -> None:
    """Write the table, one group of rows after another."""
    lines = [source.line(array) for array in source.arrays]
    rows = max(1, _GROUP_BYTES // (4 * sum(int(np.prod(line)) for line in lines)))
    index = Paths(source.results.path).index
    with whole(index):
        schema = pq.read_schema(index)
    for array, line in zip(source.arrays, lines, strict=True):
        schema = schema.append(pa.field(array.name, _kind(line), nullable=False))
    vectors = [
        f"{a.name}.list.element" if n else a.name for a, n in zip(source.arrays, lines, strict=True)
    ]
    with (
        pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=["flags"],
            use_byte_stream_split=vectors,
        ) as writer,
        Progress("exporting", len(source.results), "records") as progress,
    ):
        blocks = [source.blocks(array, rows) for array in source.arrays]
        # Batches have so many rows whatever groups they lie in, but for the last.
        for group, *found in zip(_batches(index, rows), *blocks, strict=True):
            columns = [_column(values) for _, values in found]
            arrays = [*group.columns, *columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=rows)
            progress.add(len(group))


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some rows back by pyarrow, each from its group."""
    file = pq.ParquetFile(path)
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    if starts[-1] != len(source.results):
        raise ValueError(f"{starts[-1]} rows of {len(source.results)} records")
    names = [array.name for array in source.arrays]
    for row in rows:
        group = int(np.searchsorted(starts, row, side="right")) - 1
        table = file.read_row_group(group, columns=["row", "id", *names])
        line = table.slice(row - int(starts[group]), 1).to_pylist()[0]
        if (line["row"], line["id"]) != (row, source.ids[row]):
            raise ValueError(f"row {row} is not that of its id")
        for array in source.arrays:
            expected = source.at(array, row).astype(np.float32)
            if not np.array_equal(np.array(line[array.name], np.float32), expected):
                raise ValueError(f"row {row} has other numbers")


def _batches(index: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with whole(index):
        yield from pq.ParquetFile(index).iter_batches(rows)


def _kind(line: tuple[int, ...]) -> pa.DataType:
    number = pa.float32()
    return pa.list_(pa.field("element", number, nullable=False), line[0]) if line else number


def _column(values: np.ndarray) -> pa.Array:
    flat = numbers(np.ascontiguousarray(values, np.float32).reshape(-1))
    if values.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, type=_kind(values.shape[1:]))
