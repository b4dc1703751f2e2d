"""Results as AnnData's file, ``.h5ad``, which scanpy opens.

Written with h5py by the documentation of the format ("On-disk format", anndata.readthedocs.io:
AnnData 0.1.0, dataframes and arrays 0.2.0), which anndata reads since version 0.8. Its own writer
holds all of X in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from packedesm.outputs import Array
from packedesm.progress import Progress
from packedesm.results.exports.hdf5 import Disk, new_hdf5
from packedesm.results.exports.source import Source
from packedesm.sequences.arrow import to_numpy

if TYPE_CHECKING:
    import h5py

_ROWS = 1 << 16  # of the index, at once
_NAMES = "_index"  # what anndata itself calls a dataframe's names of rows
_MANIFEST = "packedesm"


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one file for all arrays."""
    return {"proteins.h5ad": list(arrays)}


def write(path: Path, source: Source) -> None:
    """Write one new file.

    ``X`` are the vectors of ``mean``, or of the first array where that is not exported, in
    float32, in which scanpy computes; those of others are in ``obsm`` under their names. ``obs``
    is the index, with the keys as names of the rows, the ids in the column ``id``, and a column
    for each array of one number a record. ``uns["packedesm"]`` is the manifest, and
    ``uns["packedesm_manifest"]`` all of it in JSON. Without vectors there is no ``X``.
    """
    main, others, scalars = _places(source)
    with new_hdf5(path) as (file, disk):
        _encode(file, "anndata", "0.1.0")
        names = ("layers", "obsm", "obsp", "uns", "varm", "varp")
        groups = {name: _mapping(file, name) for name in names}
        _write_obs(file, source, scalars, disk)
        columns = [str(number) for number in range(*source.line(main))] if main else []
        _texts(_dataframe(file, "var", []), _NAMES, len(columns))[:] = columns
        if main is not None:
            _write_array(file, "X", source.of([main]), disk)
        for array in others:
            _write_array(groups["obsm"], array.name, source.of([array]), disk)
        _write_value(groups["uns"], _MANIFEST, source.results.manifest)
        text = json.dumps(source.results.manifest, ensure_ascii=False)
        _write_value(groups["uns"], f"{_MANIFEST}_manifest", text)


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some rows back; that anndata itself opens such files is for the tests."""
    import h5py

    main, _, _ = _places(source)
    with h5py.File(path) as file:
        for row in rows:
            if file["obs"][_NAMES][row].decode() != source.keys[row]:
                raise ValueError(f"row {row} has another name")
            if main and not np.array_equal(file["X"][row], source.at(main, row).astype(np.float32)):
                raise ValueError(f"row {row} has other numbers")


def _places(source: Source) -> tuple[Array | None, list[Array], list[Array]]:
    """Return the array of X, those of obsm, and those of one number for each record."""
    vectors = [array for array in source.arrays if array.output.columns is None]
    first = vectors[0] if vectors else None
    main = next((array for array in vectors if array.name == "mean"), first)
    others = [array for array in vectors if array != main]
    return main, others, [array for array in source.arrays if array not in vectors]


def _write_array(group: h5py.Group, name: str, source: Source, disk: Disk) -> None:
    (array,) = source.arrays
    count = len(source.rows)
    values = group.create_dataset(name, (count, *source.line(array)), np.float32)
    _encode(values, "array", "0.2.0")
    with Progress(f"exporting {array.name}", count, "records") as progress:
        for rows, block in source.blocks(array):
            values[rows.start : rows.stop] = block
            disk.expect_room()
            progress.add(len(rows))


def _write_obs(file: h5py.File, source: Source, scalars: Sequence[Array], disk: Disk) -> None:
    index = pq.ParquetFile(source.results.path / "index.parquet")
    count, fields = len(source.rows), list(index.schema_arrow)
    obs = _dataframe(file, "obs", [*(field.name for field in fields), *(a.name for a in scalars)])
    keys = _texts(obs, _NAMES, count)
    columns = [_column(obs, field, count) for field in fields]
    start = 0
    for batch in index.iter_batches(_ROWS):
        rows = slice(start, start + len(batch))
        keys[rows] = source.keys[rows]
        for write_rows, column in zip(columns, batch.columns, strict=True):
            write_rows(rows, column)
        disk.expect_room()
        start = rows.stop
    for array in scalars:
        _write_array(obs, array.name, source.of([array]), disk)


def _column(obs: h5py.Group, field: pa.Field, count: int) -> Callable[[slice, pa.Array], None]:
    """Make a column of the index; return what writes some rows of it."""
    if pa.types.is_string(field.type):
        texts = _texts(obs, field.name, count)

        def write_texts(rows: slice, column: pa.Array) -> None:
            texts[rows] = [(text or "").replace("\0", "%00") for text in column.to_pylist()]

        return write_texts
    kind = field.type.to_pandas_dtype()
    if field.name != "duplicate_of":  # the only column with nulls
        values = obs.create_dataset(field.name, (count,), kind)
        _encode(values, "array", "0.2.0")

        def write_numbers(rows: slice, column: pa.Array) -> None:
            values[rows] = to_numpy(column)

        return write_numbers
    group = obs.create_group(field.name)
    _encode(group, "nullable-integer", "0.1.0")
    values = group.create_dataset("values", (count,), kind)
    mask = group.create_dataset("mask", (count,), bool)
    for part in (values, mask):
        _encode(part, "array", "0.2.0")

    def write_nullable(rows: slice, column: pa.Array) -> None:
        values[rows] = to_numpy(pc.fill_null(column, 0))
        mask[rows] = column.is_null().to_pylist()

    return write_nullable


def _write_value(group: h5py.Group, name: str, value: Any) -> None:
    """Write a value of the manifest; one that is not there is left out."""
    import h5py

    if value is None:
        return
    if isinstance(value, Mapping):
        inner = _mapping(group, name.replace("/", "_"))
        for key, below in value.items():
            _write_value(inner, str(key), below)
        return
    name = name.replace("/", "_")
    if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
        _texts(group, name, len(value))[:] = value
    elif isinstance(value, list) and value and all(type(entry) in (int, float) for entry in value):
        _encode(group.create_dataset(name, data=value), "array", "0.2.0")
    elif isinstance(value, bool | int | float):
        _encode(group.create_dataset(name, data=value), "numeric-scalar", "0.2.0")
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        dataset = group.create_dataset(name, data=text, dtype=h5py.string_dtype())
        _encode(dataset, "string", "0.2.0")


def _mapping(group: h5py.Group, name: str) -> h5py.Group:
    made = group.create_group(name)
    _encode(made, "dict", "0.1.0")
    return made


def _dataframe(file: h5py.File, name: str, columns: list[str]) -> h5py.Group:
    import h5py

    group = file.create_group(name)
    _encode(group, "dataframe", "0.2.0")
    group.attrs[_NAMES] = _NAMES
    group.attrs.create("column-order", columns, dtype=h5py.string_dtype())
    return group


def _texts(group: h5py.Group, name: str, count: int) -> h5py.Dataset:
    import h5py

    dataset = group.create_dataset(name, (count,), h5py.string_dtype())
    _encode(dataset, "string-array", "0.2.0")
    return dataset


def _encode(item: h5py.HLObject, kind: str, version: str) -> None:
    item.attrs["encoding-type"], item.attrs["encoding-version"] = kind, version
