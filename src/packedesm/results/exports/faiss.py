"""Vectors for a search by similarity: matrices in float32, and exact indices of FAISS."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.errors import Fault, printable
from packedesm.outputs import Array
from packedesm.progress import Progress
from packedesm.results.exports.folders import tell_size
from packedesm.results.exports.source import Source

logger = logging.getLogger(__name__)

INDEX, MATRIX, IDS = ".faiss", ".npy", "ids.tsv"
INSTALL = "pip install 'packedesm[faiss]'"


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one folder for all arrays."""
    return {"faiss": list(arrays)}


def write(path: Path, source: Source) -> None:
    """Write ``ids.tsv``, and for each array ``<array>.npy`` and ``<array>.faiss``, into a folder.

    The matrix is float32 (N, D), as the run made it. The index is an ``IndexFlatIP`` of the same
    rows brought to length one, so that what it finds are cosines, exactly; a row of zeros stays
    one. It is written where FAISS is installed. Line i of the table below its head is row i.

    An index of 10^6 rows of 1,280 numbers that FAISS builds lies in memory, 5 GB. The file of
    this kind of index is a head and the rows, one after the other (``write_index_header`` and
    ``IndexFlat`` in ``faiss/impl/index_write.cpp``), so FAISS makes the head, and the rows are
    appended in blocks.

    Raises
    ------
    Fault
        If the FAISS that is installed writes such files otherwise.
    """
    indexed = find_spec("faiss") is not None
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells of what it tries
    if not indexed:
        logger.warning("faiss is not installed: matrices are written, no index; %s", INSTALL)
    path.mkdir()
    count = len(source.rows)
    numbers = sum(count * source.line(array)[0] for array in source.arrays)
    tell_size(path, 1 + len(source.arrays) * (1 + indexed), (1 + indexed) * numbers * 4)
    with (path / IDS).open("w", encoding="utf-8", newline="\n") as table:
        table.write("row\tid\n")
        table.writelines(f"{row}\t{printable(source.ids[row])}\n" for row in source.rows)
    with Progress("exporting", count * len(source.arrays), "vectors") as progress:
        for array in source.arrays:
            _write_array(path, source, array, indexed, progress)


def _write_array(
    folder: Path, source: Source, array: Array, indexed: bool, progress: Progress
) -> None:
    shape = (len(source.rows), *source.line(array))
    with ExitStack() as stack:
        matrix = stack.enter_context((folder / f"{array.name}{MATRIX}").open("wb"))
        described = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(matrix, described)
        if indexed:
            index = stack.enter_context((folder / f"{array.name}{INDEX}").open("wb"))
            index.write(_head(*shape))
        for rows, block in source.blocks(array):
            vectors = block.astype("<f4")
            matrix.write(vectors.tobytes())
            if indexed:
                index.write(_of_length_one(vectors).astype("<f4").tobytes())
            progress.add(len(rows))


def _head(count: int, width: int) -> bytes:
    """Return how FAISS begins the file of an IndexFlatIP of `count` rows."""
    import faiss

    empty = faiss.serialize_index(faiss.IndexFlatIP(width)).tobytes()

    def with_rows(count: int) -> bytes:
        # Four letters, the width (4 bytes), the rows (8); in the end how many numbers follow (8).
        return (
            empty[:8] + struct.pack("<q", count) + empty[16:-8] + struct.pack("<Q", count * width)
        )

    probe = faiss.IndexFlatIP(width)
    rows = np.arange(3 * width, dtype=np.float32).reshape(3, width)
    probe.add(rows)
    if with_rows(3) + rows.tobytes() != faiss.serialize_index(probe).tobytes():
        raise Fault(
            f"faiss {faiss.__version__}: writes its files in another way than is known here; "
            "install faiss-cpu 1.15"
        )
    return with_rows(count)


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Open each matrix and index, and read some rows back."""
    for array in source.arrays:
        matrix = np.load(path / f"{array.name}{MATRIX}", mmap_mode="r")
        place = path / f"{array.name}{INDEX}"
        index = _mapped(place) if place.exists() else None
        if len(matrix) != len(source.rows) or (index and index.ntotal != len(source.rows)):
            raise ValueError(f"{array.name} has other rows")
        for row in rows:
            expected = source.at(array, row).astype(np.float32)
            same = np.array_equal(matrix[row], expected)
            if index and same:
                same = np.array_equal(index.reconstruct(row), _of_length_one(expected[None])[0])
            if not same:
                raise ValueError(f"row {row} has other numbers")


def _mapped(path: Path) -> Any:
    """Return an index that lies in its file: read, it takes as much memory as that is large."""
    import faiss

    return faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))  # since 1.11
