"""Read results back, by row or by id."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from packedesm.errors import UserError
from packedesm.files import read_json, read_record
from packedesm.paths import Paths

if TYPE_CHECKING:
    import pandas as pd


class Results:
    """The finished results of one sample; arrays are memory-mapped, nothing is loaded ahead.

    Attributes
    ----------
    manifest : dict
        Content of ``manifest.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self._paths = Paths(path)
        if not self._paths.manifest.exists():
            raise UserError(f"{path}: no manifest.json here; not the results of a finished run")
        read = read_json if _is_of_format_1(self._paths.manifest) else read_record
        self.manifest = read(self._paths.manifest)

    def __len__(self) -> int:
        """Return the number of records."""
        return self.manifest["records"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One line per record, in input order: ``row``, ``id``, ``length``, ``flags`` …

        ``duplicate_of`` is ``Int64``, with ``<NA>`` where a row has a vector of its own.
        """
        import pandas as pd  # here: every job and command imports this file, and few need a table

        from packedesm.sequences.index import NULLABLE

        index = pd.read_parquet(self._paths.index)
        # Results of early versions do not tell pandas so.
        return index.astype({"duplicate_of": NULLABLE})

    @property
    def ids(self) -> list[str]:
        """The records' ids, in input order."""
        return self.index["id"].tolist()

    def array(self, output: str = "mean", *, copy: bool = False) -> np.ndarray:
        """Return one output's (N, D) array, a row per record; ``residue`` is (sum of lengths, D).

        The array is a read-only memory map of the file, in its number format (float32 or float16).
        Code that writes into it from outside Python, such as ``faiss.normalize_L2``, ends the
        process. `copy` reads it into memory as writable float32 in C order.

        Raises
        ------
        UserError
            If the run did not make this output.
        """
        path = self._paths.array(output)
        if path.name not in self.manifest["arrays"]:
            made = ", ".join(self.manifest["arrays"])
            raise UserError(f"{self._paths.root}: has no {path.name}; it holds {made}")
        array = np.load(path, mmap_mode="r")
        return np.array(array, dtype=np.float32, order="C") if copy else array

    def row(self, record_id: str) -> int:
        """Return the row of the first record with this id; KeyError if there is none."""
        return self._first_rows[record_id]

    def vector(self, record: int | str, output: str = "mean") -> np.ndarray:
        """Return the (D,) vector of one record, given by row or by id."""
        return self.array(output)[self._as_row(record)]

    def residues(self, record: int | str) -> np.ndarray:
        """Return the (length, D) residue vectors of one record, given by row or by id."""
        row, residues = self._as_row(record), self.array("residue")
        start, end = np.load(self._paths.residue_offsets, mmap_mode="r")[row : row + 2]
        return residues[start:end]

    def _as_row(self, record: int | str) -> int:
        return self.row(record) if isinstance(record, str) else range(len(self))[record]

    @cached_property
    def _first_rows(self) -> dict[str, int]:
        # Backwards, so that the first of several records with one id wins.
        ids = self.ids
        return {ids[row]: row for row in range(len(ids) - 1, -1, -1)}


def _is_of_format_1(manifest: Path) -> bool:
    """Tell whether a manifest is of an early version, which has no digest of itself."""
    with suppress(ValueError, TypeError, KeyError):
        return read_json(manifest)["format"] == 1
    return False


def open(path: str | Path) -> Results:
    """Open the results of a finished run, a folder such as ``results/proteins``.

    Raises
    ------
    UserError
        If the folder holds no finished run.
    """
    return Results(path)
