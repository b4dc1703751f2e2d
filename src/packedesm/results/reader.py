"""Read results back, by row or by id."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from operator import index as whole_number
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from packedesm.errors import UserError, quote
from packedesm.files import damaged, read_json, read_record
from packedesm.outputs import LAST, PAIR, RECORD, RESIDUE, Array
from packedesm.paths import Paths

if TYPE_CHECKING:
    import pandas as pd

_OFFSETS = {RESIDUE: "residue_offsets.npy", PAIR: "contacts_offsets.npy"}

# Of ids that are like one that is not there: how many are named, how many are compared one by one,
# and how long they may be, as that takes the square of their length.
_NEAR, _COMPARED, _LONGEST = 3, 1000, 200


class Results:
    """The finished results of one sample; arrays are memory-mapped, nothing is loaded ahead.

    A record is given by its row, a whole number from 0, or by its id; of several records with one
    id, which have one sequence, that is the first.

    Attributes
    ----------
    manifest : dict
        Content of ``manifest.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self._paths = Paths(path)
        if not self._paths.manifest.exists():
            raise UserError(
                f"{self.path}: no manifest.json here; not the results of a finished run"
            )
        read = read_json if _is_of_format_1(self._paths.manifest) else read_record
        self.manifest: dict[str, Any] = read(self._paths.manifest)
        self._mapped: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of records."""
        return self.manifest["records"]

    @property
    def path(self) -> Path:
        """The folder."""
        return self._paths.root

    @property
    def arrays(self) -> list[str]:
        """The names of the arrays that the run made, such as ``mean`` and ``mean.layer20``."""
        return [name.removesuffix(".npy") for name in self.manifest["arrays"]]

    @property
    def depth(self) -> int:
        """How many layers the model has: the number of the last one."""
        return self.manifest["model"]["layers"]

    @cached_property
    def index(self) -> pd.DataFrame:
        """One line per record, in input order: ``row``, ``id``, ``length``, ``flags`` …

        ``duplicate_of`` is ``Int64``, with ``<NA>`` where a row has a vector of its own.
        """
        import pandas as pd  # here: every job and command imports this file, and few need a table

        from packedesm.results.index_file import whole
        from packedesm.sequences.index import NULLABLE

        with whole(self._paths.index):
            index = pd.read_parquet(self._paths.index)
        # Results of early versions do not tell pandas so.
        return index.astype({"duplicate_of": NULLABLE})

    @cached_property
    def ids(self) -> list[str]:
        """The records' ids, in input order."""
        from packedesm.results.index_file import (
            index_columns,  # here: who knows the rows needs no ids
        )

        return index_columns(self._paths.index, ["id"])["id"].to_pylist()

    def array(
        self, output: str = "mean", layer: int | str | None = None, *, copy: bool = False
    ) -> np.ndarray:
        """Return one output of all records, a read-only memory map of its file.

        Its lines are in input order: per record (N, …), per residue (sum of embedded lengths, …),
        where `offsets` tells which are whose; of ``contacts`` per pair of residues, see `contacts`.
        A line is a vector (D,) of ``mean``, ``cls``, ``max`` and ``residue``, (33,) of ``logits``,
        (20,) of ``masked_marginals``, as `columns` says, and one number of the others.

        Code that writes into the map from outside Python, such as ``faiss.normalize_L2``, ends the
        process.

        Parameters
        ----------
        output
            Of which output; or the name of an array, such as ``mean.layer20``.
        layer
            Of which layer, as fair-esm counts them: 0 are the embeddings, -1 or ``"last"`` is the
            last, which None means too.
        copy
            Read it into memory, as writable float32 in C order.

        Raises
        ------
        UserError
            If the run did not make it; the message tells what is there.
        """
        array = self._map(self.name(output, layer))
        return np.array(array, dtype=np.float32, order="C") if copy else array

    def name(self, output: str = "mean", layer: int | str | None = None) -> str:
        """Return the name of the array that `array` would return; raises as that does."""
        try:
            array = Array.named(output)
            if layer is not None:
                array = Array(array.output, self._number(array, layer))
            elif array.layer is not None and array.layer == self.depth:
                array = Array(array.output)
        except (ValueError, TypeError):
            raise UserError(
                f"{self.path}: {quote(str(output))} is no output; {self._there()}"
            ) from None
        if array.name not in self.arrays:
            raise UserError(f"{self.path}: has no {array.name}.npy; {self._there()}")
        return array.name

    def columns(self, output: str) -> list[str] | None:
        """Return the letters or tokens of an array's columns; None where they have no names."""
        said = self.manifest["arrays"][f"{self.name(output)}.npy"].get("columns")
        return list(said) if said else None

    def offsets(self, output: str = "residue") -> np.ndarray:
        """Return where each record's lines of an array begin: int64 (N + 1,), read-only.

        Record i has the lines from element i to element i + 1.
        """
        per = Array.named(self.name(output)).per
        return np.arange(len(self) + 1) if per == RECORD else self._map_offsets(per)

    def row(self, record_id: str) -> int:
        """Return the row of the first record with this id.

        Raises
        ------
        KeyError
            If there is none; the message names ids that are like it.
        TypeError
            If it is no text.
        """
        if (kind := type(record_id).__name__) != "str" and not isinstance(record_id, str):
            raise TypeError(f"an id is a text, not a {kind}; a row needs no search, it is one")
        try:
            return self._first_rows[record_id]
        except KeyError:
            near = ", ".join(map(quote, near_ids(record_id, self.ids)))
            said = f"no record has the id {quote(record_id)}" + (
                f"; near it are {near}" * bool(near)
            )
            raise KeyError(said) from None

    def vector(
        self, record: int | str, output: str = "mean", layer: int | str | None = None
    ) -> np.ndarray:
        """Return the (D,) vector of one record, or its one number of ``pseudo_perplexity``.

        Raises
        ------
        KeyError, IndexError
            If there is no such record.
        UserError
            If the run did not make the output, or that has lines of its own for every residue.
        """
        name = self.name(output, layer)
        if (per := Array.named(name).per) != RECORD:
            raise UserError(
                f"{self.path}: {name} has lines for every {per}, not one of each record"
            )
        return self._map(name)[self._as_row(record)]

    def residues(self, record: int | str, layer: int | str | None = None) -> np.ndarray:
        """Return the (L, D) vectors of one record's embedded residues; raises as `vector`."""
        return self._lines(record, self.name("residue", layer))

    def logits(self, record: int | str) -> np.ndarray:
        """Return what the language head says at each residue, (L, 33); raises as `vector`."""
        return self._lines(record, self.name("logits"))

    def log_likelihood(self, record: int | str) -> np.ndarray:
        """Return log p of each residue from one unmasked pass, float32 (L,); raises as `vector`."""
        return self._lines(record, self.name("log_likelihood"))

    def masked_marginals(self, record: int | str) -> np.ndarray:
        """Return log p of each standard residue at each masked place, (L, 20).

        Raises as `vector`; `columns` tells the letters.
        """
        return self._lines(record, self.name("masked_marginals"))

    def contacts(self, record: int | str) -> np.ndarray:
        """Return the probability that two residues touch, float32 (L, L), symmetric.

        The file has the upper triangle of each record, the diagonal with it, row by row. Raises as
        `vector`.
        """
        triangle = self._lines(record, self.name("contacts"))
        length = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
        square = np.empty((length, length), np.float32)
        above = np.triu_indices(length)
        square[above] = triangle
        square.T[above] = triangle
        return square

    def _number(self, array: Array, layer: int | str) -> int | None:
        """Return which layer is meant, as `Array` has it; UserError if there is none such."""
        if array.layer is not None:
            raise UserError(f"{self.path}: {array.name} names a layer; give none besides")
        with suppress(TypeError):
            number = self.depth if layer == LAST else whole_number(layer)  # type: ignore[arg-type]
            if not isinstance(layer, bool) and -self.depth - 1 <= number <= self.depth:
                number %= self.depth + 1
                if number == self.depth:
                    return None
                if array.output.layered:
                    return number
                raise UserError(f"{self.path}: {array.name} is not of one layer; give none")
        raise UserError(
            f"{self.path}: there is no layer {layer!r}; the model has 0 (the embeddings) to "
            f"{self.depth} (the last)"
        )

    def _there(self) -> str:
        return f"it holds {', '.join(self.manifest['arrays'])}"

    def _map(self, name: str) -> np.ndarray:
        if name not in self._mapped:
            path = self.path / f"{name}.npy"
            try:
                array = np.load(path, mmap_mode="r")
            except FileNotFoundError:
                raise UserError(f"{path}: is gone; it was there when the run finished") from None
            except ValueError:
                raise damaged(path) from None
            said = self.manifest["arrays"].get(path.name, {})
            if list(array.shape) != said.get("shape", list(array.shape)):
                raise damaged(path)
            self._mapped[name] = array
        return self._mapped[name]

    def _map_offsets(self, per: str) -> np.ndarray:
        return self._map(_OFFSETS[per].removesuffix(".npy"))

    def _lines(self, record: int | str, name: str) -> np.ndarray:
        row = self._as_row(record)
        start, end = self._map_offsets(Array.named(name).per)[row : row + 2]
        return self._map(name)[start:end]

    def _as_row(self, record: int | str) -> int:
        if isinstance(record, str):
            return self.row(record)
        if isinstance(record, bool | np.bool_):
            raise TypeError("a record is given by its row or its id, not by True or False")
        row = whole_number(record)
        if not 0 <= row < len(self):
            raise IndexError(f"there is no row {row}; there are {len(self)}, from 0")
        return row

    @cached_property
    def _first_rows(self) -> dict[str, int]:
        # Backwards, so that the first of several records with one id wins.
        return dict(zip(reversed(self.ids), range(len(self.ids) - 1, -1, -1), strict=True))


def near_ids(wanted: str, ids: Sequence[str]) -> list[str]:
    """Return ids that somebody who wrote `wanted` may have meant, the likeliest first.

    Capital letters are as good as small ones. Of a million ids only those are compared letter by
    letter that begin or end as it does.
    """
    if not 1 < len(wanted) <= _LONGEST:
        return []
    wanted = wanted.lower()
    half = len(wanted) // 2
    begin, end = wanted[:half], wanted[-half:]
    lower = [other.lower() for other in ids]
    pairs = list(zip(ids, lower, strict=True))
    alike = ((o, low) for o, low in pairs if low.startswith(begin) or low.endswith(end))

    whole = islice((o for o, low in pairs if wanted in low), _NEAR)
    inside = islice((o for o, low in pairs if len(low) > 3 and low in wanted), _NEAR)
    pool = {low: o for o, low in islice(alike, _COMPARED) if len(low) <= _LONGEST}
    close = map(pool.__getitem__, difflib.get_close_matches(wanted, sorted(pool), _NEAR))
    found = (other for other in (*whole, *inside, *close) if len(other) <= _LONGEST)
    return list(dict.fromkeys(found))[:_NEAR]


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
