"""A user's table of proteins, of which one column colours the maps."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packedesm.errors import UserError, listed, plural, printable, quote
from packedesm.files import file_digest
from packedesm.options import NONE, ReportOptions
from packedesm.sequences.index import read_ids

LIBRARY, EXTRA = "openTSNE", "map"  # of t-SNE, and what brings it
_ID = "id"
_KEY = "config key report"


class Annotations(NamedTuple):
    """What a table says of some proteins."""

    path: Path
    sha256: str
    column: str
    values: dict[str, str]  # by id, without those that are empty
    ids: Collection[str]  # of all proteins that it tells of

    def matches_none(self, index: Path) -> str | None:
        """Say in a line that the table tells of no record of an index, if that is so."""
        if self.values:
            return None
        name = printable(str(self.path))
        if not self.ids:
            return f"{name}: tells of no protein, and colours no map; it has a first line alone"
        first = None
        for record in read_ids(index):
            first = record if first is None else first
            if record in self.ids:
                return None
        return (
            f"{name}: has {plural(len(self.ids), 'id')}, the first {quote(next(iter(self.ids)))}, "
            f"and none is that of a record, of which the first is {quote(str(first))}; it colours "
            f"no map until they are alike ({_KEY}.annotations)"
        )


def check_shown(options: ReportOptions, *, library: bool = True) -> None:
    """Check, before anything is computed, that the report can show what it is asked for.

    Parameters
    ----------
    options
        What is asked for.
    library
        Whether this process's Python is the one that will write the report.

    Raises
    ------
    UserError
        If the table is none, lacks the column, or says two things of one protein; or if the library
        of a map is not installed.
    """
    if library and options.map == "tsne" and find_spec(LIBRARY) is None:
        raise UserError(
            f"{_KEY}.map: tsne needs {LIBRARY}, which is not installed; install it by: "
            f"pip install 'packedesm[{EXTRA}]'"
        )
    read_annotations(options, ())


def read_annotations(options: ReportOptions, ids: Collection[str]) -> Annotations | None:
    """Return what the table says of proteins with these ids; None if no table is given.

    Every line of it is read and checked. Raises UserError as `check_shown`.
    """
    path = options.table
    if path is None:
        if options.column != NONE:
            raise UserError(
                f"{_KEY}.column: {quote(options.column)} is a column of no table; give it by "
                "report.annotations"
            )
        return None
    if path.is_fifo():
        raise UserError(
            f"{path}: can be read only once, and is read again for the report; write it to a file "
            f"({_KEY}.annotations)"
        )
    try:
        # Before it is read: of a table that changes meanwhile another report is drawn next time.
        sha256 = file_digest(path)
        with path.open(encoding="utf-8-sig", newline="") as handle:
            lines = csv.reader(handle, delimiter="\t", strict=True)
            column, values, known = _read(path, lines, options.column, set(ids))
            return Annotations(path, sha256, column, values, known)
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8 ({_KEY}.annotations)") from None
    except csv.Error as error:
        raise UserError(f"{path}: is no table of tab-separated values: {error}") from None
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check {_KEY}.annotations") from None


def _read(
    path: Path, lines: Iterator[list[str]], column: str, wanted: set[str]
) -> tuple[str, dict[str, str], Collection[str]]:
    """Return the column's name, the values of the ids that are wanted, and all ids."""
    names = next(lines, [])
    id_place, place = _places(path, names, column)
    known: dict[str, int] = {}  # a digest in place of each value: tables may be long
    values = {}
    for number, line in enumerate(lines, 2):
        if not line:
            continue
        if len(line) != len(names):
            raise UserError(
                f"{path}: line {number} has {len(line)} cells, the first line {len(names)}"
            )
        name, value = line[id_place], line[place].strip()
        if known.setdefault(name, hash(value)) != hash(value):
            raise UserError(f"{path}: line {number}: {quote(name)} had another value before")
        if value and name in wanted:
            values[name] = value
    return names[place], values, known.keys()


def _places(path: Path, names: list[str], column: str) -> tuple[int, int]:
    """Return where in a line the id stands, and the value."""
    if len(names) < 2:
        raise UserError(
            f"{path}: its first line must name two columns or more, separated by tabs "
            f"({_KEY}.annotations)"
        )
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: its first line names {quote(min(repeated))} twice")
    id_place = names.index(_ID) if _ID in names else 0
    if column == NONE:
        return id_place, next(place for place in range(len(names)) if place != id_place)
    if column not in names:
        has = listed(map(quote, names), len(names))
        raise UserError(f"{path}: has no column {quote(column)}; it has {has} ({_KEY}.column)")
    return id_place, names.index(column)
