"""The ``embed`` format of scikit-bio, HDF5 too.

As its reader demands (0.7, ``skbio/io/format/embed.py``): ``embedding`` (lines, D), ``id`` with the
letters of all sequences as bytes, and ``idptr`` with the end of each sequence among them; with one
vector for each protein besides ``embedding_ptr``, the end of each one's lines. Always float32, as
its documentation asks for. Proteins stand in the order of the results and are known by their
sequence, not by an id: the table of ids beside the file tells whose each is.

scikit-bio's own writer loses the end of the last protein of several; this file has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from packedesm.outputs import RECORD, Array
from packedesm.progress import Progress
from packedesm.results.exports.hdf5 import new_hdf5
from packedesm.results.exports.source import Source

_LETTERS = 1 << 20  # that are held before they are written


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one file for each array, such as ``mean.embed.h5``."""
    return {f"{array.name}.embed.h5": [array] for array in arrays}


def write(path: Path, source: Source) -> None:
    """Write vectors and sequences; of residues only those of the sequence that were embedded."""
    (array,) = source.arrays
    width, offsets = source.line(array)[0], source.offsets(array)
    lengths = source.lengths(embedded=array.per != RECORD)
    with new_hdf5(path) as (file, disk):
        file.attrs.update({"format": "embedding", "format-version": "1.0"})
        file.attrs.update({"dtype": "float32", "dim": width, "model_name": source.model_name})
        file.create_dataset("idptr", data=np.cumsum(lengths), track_times=False)
        if array.per == RECORD:
            file.create_dataset("embedding_ptr", data=offsets[1:], track_times=False)
        letters = file.create_dataset("id", (int(lengths.sum()),), np.uint8, track_times=False)
        start = 0
        for block in _cut(source.sequences(), lengths):
            letters[start : start + len(block)] = np.frombuffer(block, np.uint8)
            start += len(block)
            disk.expect_room()
        shape = (int(offsets[-1]), width)
        vectors = file.create_dataset("embedding", shape, np.float32, track_times=False)
        with Progress("exporting", len(source.results), "records") as progress:
            for rows, lines in source.blocks(array):
                vectors[offsets[rows.start] : offsets[rows.stop]] = lines.astype(np.float32)
                disk.expect_room()
                progress.add(len(rows))


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some proteins back, as scikit-bio's reader does: from the end of the one before."""
    import h5py

    (array,) = source.arrays
    with h5py.File(path) as file:
        ends = file["embedding_ptr" if array.per == RECORD else "idptr"]
        if len(ends) != len(source.results) or len(file["id"]) != file["idptr"][-1]:
            raise ValueError(f"{len(ends)} proteins of {len(source.results)} records")
        for row in rows:
            found = file["embedding"][ends[row - 1] if row else 0 : ends[row]]
            expected = np.atleast_2d(source.at(array, row)).astype(np.float32)
            if not np.array_equal(found, expected):
                raise ValueError(f"row {row} has other numbers")


def _cut(sequences: Iterator[bytes], lengths: np.ndarray) -> Iterator[bytes]:
    """Yield the beginnings of the sequences, so long, back to back in blocks."""
    held: list[bytes] = []
    size = 0
    for sequence, length in zip(sequences, lengths.tolist(), strict=True):
        held.append(sequence[:length])
        size += length
        if size >= _LETTERS:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)
