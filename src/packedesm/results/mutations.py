"""The table of mutations that a user gives, read strictly: a line that is not right is named."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from packedesm.alphabet import STANDARD
from packedesm.errors import UserError, plural, quote
from packedesm.paths import named

COLUMNS = ("id", "mutations")

_SUCH = "such as A42G, or A42G:C50S for both together"
_MUTATION = re.compile(r"([A-Z])([1-9][0-9]{0,8})([A-Z])")
_SEPARATORS = {";": "semicolons", "\t": "tabs"}


class Mutation(NamedTuple):
    """One residue in place of another."""

    wild_type: str
    position: int  # in the record, from 1
    mutant: str

    def __str__(self) -> str:
        return f"{self.wild_type}{self.position}{self.mutant}"


class Variant(NamedTuple):
    """A line of the table."""

    line: int  # of the file, from 1
    id: str
    text: str  # the mutations as they were given
    mutations: tuple[Mutation, ...]


def read_mutations(path: Path) -> list[Variant]:
    """Read a CSV file with a header that names `COLUMNS`; further columns are left alone.

    UTF-8, with or without a byte order mark; lines end in any way; fields may be quoted.

    Raises
    ------
    UserError
        If a line is not right; names it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return list(_variants(named(path), csv.reader(handle, strict=True)))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{named(path)}: is not text in UTF-8 ({error.reason}); save it as CSV in UTF-8"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{named(path)}: no such file; give a CSV of id,mutations") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give a CSV of id,mutations") from None


def _variants(path: Path, reader: Iterator[list[str]]) -> Iterator[Variant]:
    # Of the reader, not the number of rows: a quoted field may go over several lines.
    lines = _Lines(path, reader)
    header = next(lines, None)
    places = _places(path, header)
    for row in lines:
        if len(row) != len(header or ()):
            raise lines.wrong(
                f"has {plural(len(row), 'field')}, the header {len(header or ())}; quote a field "
                "that holds a comma"
            )
        name, text = (row[place] for place in places)
        if not name:
            raise lines.wrong("has no id")
        try:
            yield Variant(lines.number, name, text, parse(text))
        except ValueError as error:
            raise lines.wrong(str(error)) from None


class _Lines:
    """The rows of a CSV file that hold something, with the line in which the last one ended."""

    def __init__(self, path: Path, reader: Iterator[list[str]]) -> None:
        self._path = path
        self._reader = reader
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> list[str]:
        while True:
            try:
                row = next(self._reader)
            except csv.Error as error:
                self._count()
                raise self.wrong(f"is not a line of CSV ({error})") from None
            self._count()
            if any(map(str.strip, row)):
                return [field.strip() for field in row]

    def _count(self) -> None:
        self.number = int(self._reader.line_num)  # type: ignore[attr-defined]

    def wrong(self, what: str) -> UserError:
        """Return what to raise of the last row."""
        return UserError(f"{self._path}, line {self.number}: {what}")


def _places(path: Path, header: Sequence[str] | None) -> list[int]:
    """Return where the columns stand."""
    if header is None:
        raise UserError(f"{path}: is empty; its first line must be the header id,mutations")
    if sorted(name for name in header if name in COLUMNS) == sorted(COLUMNS):
        return [header.index(name) for name in COLUMNS]
    raise UserError(
        f"{path}, line 1: the header must name id and mutations, each once, and is "
        f"{quote(','.join(header))}{_why(header)}"
    )


def _why(header: Sequence[str]) -> str:
    """Return what to do about a header that is not right, if that can be told."""
    for mark, name in _SEPARATORS.items():
        if mark in "".join(header):
            return f"; separate fields by commas, not {name}"
    if any(re.match(_MUTATION, field) for field in header):
        return "; there is no header: the first line must be id,mutations"
    for wanted in COLUMNS:
        others = [field for field in header if field not in COLUMNS]
        if wanted not in header and (near := get_close_matches(wanted, map(str.lower, others), 1)):
            given = next(field for field in others if field.lower() == near[0])
            return f"; for {quote(given)}, did you mean {wanted}?"
    return ""


def parse(text: str) -> tuple[Mutation, ...]:
    """Return the mutations that a text such as ``A42G:C50S`` names; ValueError says what is amiss.

    Each is the residue that stands there, its position from 1, and the residue in its place.
    """
    mutations = []
    for part in text.split(":"):
        found = _MUTATION.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"{quote(text)} is no mutation, {_SUCH}")
        mutation = Mutation(found[1], int(found[2]), found[3])
        for letter in (mutation.wild_type, mutation.mutant):
            if letter not in STANDARD:
                raise ValueError(
                    f"{mutation}: {letter} is none of the 20 residues that have a score, "
                    f"{''.join(sorted(STANDARD))}"
                )
        mutations.append(mutation)
    positions = [mutation.position for mutation in mutations]
    for position in positions:
        if positions.count(position) > 1:
            raise ValueError(f"{quote(text)} changes position {position} twice")
    return tuple(mutations)
