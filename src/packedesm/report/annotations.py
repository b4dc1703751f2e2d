"""A user's table of proteins, of which one column colours the maps."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from packedesm.errors import UserError, listed, quote
from packedesm.options import ReportOptions

NONE = "none"  # in place of a path or a column
LIBRARY, EXTRA = "openTSNE", "map"  # of t-SNE, and what brings it
_ID = "id"
_KEY = "config key report"


class Annotations(NamedTuple):
    """What a table says of some proteins."""

    file: str
    column: str
    values: dict[str, str]  # by id, without those that are empty


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
    if options.annotations == NONE:
        if options.column != NONE:
            raise UserError(
                f"{_KEY}.column: {quote(options.column)} is a column of no table; give it by "
                "report.annotations"
            )
        return None
    path = Path(options.annotations)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return _read(path, csv.reader(handle, delimiter="\t", strict=True), options, set(ids))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8 ({_KEY}.annotations)") from None
    except csv.Error as error:
        raise UserError(f"{path}: is no table of tab-separated values: {error}") from None
    except PermissionError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check {_KEY}.annotations") from None


def _read(
    path: Path, lines: Iterator[list[str]], options: ReportOptions, wanted: set[str]
) -> Annotations:
    names = next(lines, [])
    id_place, place = _places(path, names, options.column)
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
    return Annotations(path.name, names[place], values)


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
