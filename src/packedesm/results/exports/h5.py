"""HDF5 with one dataset per protein.

As UniProt's own files (``per-protein.h5``, ``per-residue.h5``) and those of bio_embeddings have it:
flat, named by the protein; read by ProtSpace 4.8 (``data/loaders/h5.py``: 1-D datasets, of the root
the attribute ``model_name``, float16 made float32) and by biotrainer 1.4
(``embedders/services/embedding_service.py``: datasets named by a hash, with gzip and the attribute
``original_id``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.outputs import RECORD, Array
from packedesm.progress import Progress
from packedesm.results.exports.hdf5 import new_hdf5
from packedesm.results.exports.source import Source

_COMPACT = 60_000  # bytes of a dataset that HDF5 keeps beside its name: less room, half the time


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one file for each array: ``per_protein.h5`` of mean, ``per_residue.h5`` of residue.

    Of others with their name between: ``per_protein.cls.h5``.
    """
    return {_file_name(array): [array] for array in arrays}


def write(path: Path, source: Source) -> None:
    """Write a dataset for each record: (D,) of one line, (L, …) of a line for every residue."""
    (array,) = source.arrays
    with new_hdf5(path) as (file, disk):
        file.attrs["model_name"] = source.model_name
        file.attrs["array"] = array.name
        add = _adding_hashed if source.called == "biotrainer" else _adding
        put = add(file, source, array)
        with Progress("exporting", len(source.rows), "records") as progress:
            for row, values in source.records(array):
                put(row, values)
                disk.expect_room()
                progress.add(1)


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some records back by their keys, as h5py's users do."""
    import h5py

    (array,) = source.arrays
    with h5py.File(path) as file:
        if len(file) != len(source.rows):
            raise ValueError(f"{len(file)} datasets of {len(source.rows)} records")
        for row in rows:
            found, expected = file[source.keys[row]], source.at(array, row)
            if not isinstance(found, h5py.Dataset) or found.dtype != expected.dtype:
                raise ValueError(f"row {row} is no dataset of its number format")
            if not np.array_equal(found[()], expected):
                raise ValueError(f"row {row} has other numbers")


def _file_name(array: Array) -> str:
    kind, usual = ("protein", "mean") if array.per == RECORD else ("residue", "residue")
    return f"per_{kind}.h5" if array.name == usual else f"per_{kind}.{array.name}.h5"


def _adding(file: Any, source: Source, array: Array) -> Callable[[int, np.ndarray], None]:
    """Return what writes a plain dataset.

    By h5py's lower half: the upper takes a third of a millisecond for each, five times as long.
    """
    from h5py import h5d, h5p, h5s, h5t

    kind = h5t.py_create(source.dtype(array), logical=True)
    compact, plain = (h5p.create(h5p.DATASET_CREATE) for _ in range(2))
    compact.set_layout(h5d.COMPACT)
    for properties in (compact, plain):
        properties.set_obj_track_times(False)  # the same results, the same bytes

    def put(row: int, values: np.ndarray) -> None:
        properties = compact if values.nbytes <= _COMPACT else plain
        space = h5s.create_simple(values.shape)
        dataset = h5d.create(file.id, source.keys[row].encode(), kind, space, properties)
        dataset.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(values), kind)

    return put


def _adding_hashed(file: Any, source: Source, _array: Array) -> Callable[[int, np.ndarray], None]:
    """Return what writes a dataset as biotrainer does: gzip, and the id as an attribute."""

    def put(row: int, values: np.ndarray) -> None:
        key = source.keys[row]
        dataset = file.create_dataset(
            key, data=values, compression="gzip", chunks=True, track_times=False
        )
        dataset.attrs["original_id"] = source.ids[row].replace("\0", "%00")  # texts end there

    return put
