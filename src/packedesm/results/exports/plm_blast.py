"""Results as a database or the queries of pLM-BLAST, which aligns proteins by their residues.

What it demands is in its code, github.com/labstructbioinf/pLM-BLAST (commit 4dddea3):

- ``DataObject`` in ``alntools/filehandle.py``: a folder ``NAME`` with ``0.emb``, ``1.emb``, …, by
  the order of the records in the file ``NAME.fas`` (or ``.csv``) beside it, of whose ids each is
  there once, or all are replaced by numbers;
- ``save_as_separate_files`` in ``embedders/base.py``: such a file is one saved tensor (L, D) in
  float16, loaded with ``torch.load`` and made float32;
- ``RESIDUES`` and ``RESIDUE_GROUPS`` in ``alntools/settings.py``: letters of a sequence that are
  neither one of the 20 amino acids nor X end the search when its alignments are drawn.

In a CSV pandas would read ids such as ``001`` or ``NA`` as numbers and missing values, so the
index is a FASTA file.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from packedesm.alphabet import STANDARD
from packedesm.errors import plural
from packedesm.outputs import Array
from packedesm.progress import Progress
from packedesm.results.exports.folders import tell_size
from packedesm.results.exports.source import Source

logger = logging.getLogger(__name__)

DATABASE, INDEX, SUFFIX = "database", "database.fas", ".emb"
_OTHER = bytes(set(range(256)) - set("".join(STANDARD).encode()))
_TO_X = bytes.maketrans(_OTHER, b"X" * len(_OTHER))
_FRAME = 1700  # bytes of a file and its sequence besides the numbers
_LARGEST = float(np.finfo(np.float16).max)


def files(arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return one folder for each array: ``plm-blast``, and ``plm-blast.layer3``."""
    return {"plm-blast" + array.name.removeprefix(array.output.name): [array] for array in arrays}


def write(path: Path, source: Source) -> None:
    """Write the folder ``database`` and its index ``database.fas`` into the new folder `path`.

    The file of row i is ``i.emb``, float16 (L, D); float32 where a number is too large for that.
    """
    import torch

    (array,) = source.arrays
    (path / DATABASE).mkdir(parents=True)
    count = len(source.rows)
    numbers = int(source.results.offsets(array.name)[-1]) * source.line(array)[0]
    tell_size(path, count + 1, 2 * numbers + _FRAME * count)
    cut = single = 0
    records = zip(source.records(array), source.sequences(), _descriptions(source), strict=True)
    with (
        (path / INDEX).open("w", encoding="utf-8", newline="\n") as index,
        Progress("exporting", count, "records") as progress,
    ):
        for (row, vectors), sequence, description in records:
            file = io.BytesIO()  # of a full disk torch's own writer says only that it failed
            torch.save(torch.from_numpy(_half(vectors)), file)
            (path / DATABASE / f"{row}{SUFFIX}").write_bytes(file.getbuffer())
            embedded = sequence[: len(vectors)]
            residues = embedded.translate(_TO_X)
            header = " ".join([source.keys[row], *description.split()])
            index.write(f">{header}\n{residues.decode()}\n")
            cut += residues != embedded
            single += len(vectors) == 1
            progress.add(1)
    _tell(cut, single)


def check(path: Path, source: Source, rows: Sequence[int]) -> None:
    """Read some files back as pLM-BLAST does, without running code from them."""
    import torch

    (array,) = source.arrays
    for row in rows:
        found = torch.load(path / DATABASE / f"{row}{SUFFIX}", weights_only=True).float().numpy()
        if not np.array_equal(found, _half(source.at(array, row)).astype(np.float32)):
            raise ValueError(f"row {row} has other numbers")


def _half(vectors: np.ndarray) -> np.ndarray:
    """Return a copy in float16, or in float32 where that is too small for a number."""
    fits = vectors.size == 0 or bool(np.abs(vectors).max() <= _LARGEST)
    return np.array(vectors, np.float16 if fits else np.float32)


def _descriptions(source: Source) -> Iterator[str]:
    index = pq.ParquetFile(source.results.path / "index.parquet")
    for batch in index.iter_batches(1 << 14, columns=["description"]):
        yield from batch.column(0).to_pylist()


def _tell(cut: int, single: int) -> None:
    if cut:
        logger.info(
            "%s letters other than the 20 amino acids, which pLM-BLAST cannot draw: X in %s",
            "1 sequence has" if cut == 1 else f"{cut:,} sequences have",
            INDEX,
        )
    if single:
        logger.warning(
            "%s of one residue: pLM-BLAST's pre-screening ends with an error on such; run it with "
            "-cpc 0, or leave them out",
            plural(single, "record"),
        )
