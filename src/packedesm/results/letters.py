"""``residue_letters.npy``: which residue each line of an array per residue is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from packedesm.files import create_npy, file_digest
from packedesm.paths import Paths
from packedesm.sequences.faidx import read_faidx
from packedesm.sequences.summary import reading_sharded


def write_letters(
    path: Path, paths: Paths, summary: Mapping[str, Any], offsets: np.ndarray, source: np.ndarray
) -> str:
    """Write the letters of the embedded residues of all rows; return the digest of the file.

    They are those that the model read, after what was done to the input's letters, one byte each
    (``S1``), in the order of the arrays per residue: bytes of a slice are a sequence.

    Parameters
    ----------
    summary
        What `packedesm.sequences.summary.read_summary` gave, of the shards that are read.
    offsets
        int64 (N + 1,): where each row's residues begin, and the last row's end.
    source
        int64 (N,): the row, earlier or the same, whose sequence a row has.
    """
    letters = create_npy(path, (int(offsets[-1]),), "S1")
    for shard in range(len(summary["shards"])):
        for row, sequence in _sequences(paths, shard, summary):
            first, stop = offsets[row : row + 2].tolist()
            letters[first:stop] = np.frombuffer(sequence[: stop - first], "S1")
    for row in np.flatnonzero(source != np.arange(len(source))).tolist():
        first, stop = offsets[row : row + 2].tolist()
        begin = int(offsets[source[row]])
        letters[first:stop] = letters[begin : begin + stop - first]
    letters.flush()
    return file_digest(path)


def _sequences(paths: Paths, shard: int, summary: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of a shard with their sequences; Damaged if a file is not as it was."""
    fai, fasta = paths.shard_fai(shard), paths.shard_fasta(shard)
    with (
        reading_sharded(paths, fai, summary=summary),
        reading_sharded(paths, fasta, summary=summary),
    ):
        rows, lengths, offsets = (column.tolist() for column in read_faidx(fai))
        with fasta.open("rb") as handle:
            for row, length, offset in zip(rows, lengths, offsets, strict=True):
                handle.seek(offset)
                yield row, handle.read(length)
