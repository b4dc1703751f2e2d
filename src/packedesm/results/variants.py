"""Mutations scored by the masked marginals of a finished run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from packedesm.alphabet import STANDARD
from packedesm.errors import Fault, UserError, quote
from packedesm.paths import Paths, named
from packedesm.results.index_file import index_columns
from packedesm.results.mutations import COLUMNS, Mutation, Variant, read_mutations
from packedesm.results.reader import Results, near_ids
from packedesm.sequences.arrow import to_numpy

_COLUMN = {letter: place for place, letter in enumerate(STANDARD)}


def score(results: Path, mutations: Path) -> list[tuple[str, str, float]]:
    """Score mutations: id, mutations as they were given, and the score of each line.

    The score is the sum, over the mutations of a line, of log p(mutant) - log p(wild type), both
    at the position that is masked and all others unchanged: the masked marginals of Meier et al.
    (2021), "Language models enable zero-shot prediction of the effects of mutations on protein
    function", NeurIPS 34. Natural logarithms; below 0 the model finds the mutant less likely. That
    scores of several mutations add up is that article's choice: what they do together is not seen.

    Parameters
    ----------
    results
        Folder of a finished run with the output ``masked_marginals``.
    mutations
        See `packedesm.results.mutations.read_mutations`. An id that several records have means the
        first of them: their sequences are the same.

    Raises
    ------
    UserError
        If the results or the file are not such, or a line names a record that is not there, a
        position beyond its end, or a residue that does not stand there; names the line.
    """
    opened = Results(results)
    marginals = opened.array("masked_marginals")
    records = _Records(Paths(results))
    variants = read_mutations(mutations)
    scores = []
    for variant in variants:
        try:
            lines = records.lines(variant)
        except ValueError as error:
            raise UserError(f"{named(mutations)}, line {variant.line}: {error}") from None
        scores.append((variant.id, variant.text, _score(marginals, lines, variant.mutations)))
    return scores


def _score(marginals: np.ndarray, lines: Sequence[int], mutations: Sequence[Mutation]) -> float:
    total = 0.0
    for line, mutation in zip(lines, mutations, strict=True):
        numbers = marginals[line]
        total += float(numbers[_COLUMN[mutation.mutant]])
        total -= float(numbers[_COLUMN[mutation.wild_type]])
    return total


def as_csv(scores: Iterable[tuple[str, str, float]]) -> str:
    """Return scores as the text of a CSV file, six digits after the point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "score"])
    writer.writerows((name, what, f"{value:.6f}") for name, what, value in scores)
    return text.getvalue()


class _Record(NamedTuple):
    name: str
    first: int  # its first line in arrays per residue
    embedded: int  # residues
    length: int  # residues, of which the first `embedded` are in the arrays


class _Records:
    """The records of some results, found by id, and the residues that stand in them."""

    def __init__(self, paths: Paths) -> None:
        if not paths.residue_letters.exists():
            raise Fault(
                f"{paths.residue_letters}: is missing, so wild types cannot be checked; make the "
                "results again"
            )
        index = index_columns(paths.index, ["id", "length", "embedded_length"])
        self._ids: list[str] = index["id"].to_pylist()
        # Backwards, so that the first of several records with one id wins.
        self._rows = {self._ids[row]: row for row in range(len(self._ids) - 1, -1, -1)}
        self._lengths = to_numpy(index["length"])
        self._offsets = np.load(paths.residue_offsets, mmap_mode="r")
        self._letters = np.load(paths.residue_letters, mmap_mode="r")

    def lines(self, variant: Variant) -> list[int]:
        """Return the line of each mutation in arrays per residue; ValueError says what is amiss."""
        record = self._record(variant.id)
        return [self._line(record, mutation) for mutation in variant.mutations]

    def _record(self, name: str) -> _Record:
        row = self._rows.get(name)
        if row is None:
            near = ", ".join(map(quote, near_ids(name, self._ids)))
            hint = f"; near it are {near}" if near else ""
            raise ValueError(f"no record of the results has the id {quote(name)}{hint}")
        first, stop = self._offsets[row : row + 2].tolist()
        return _Record(name, first, stop - first, int(self._lengths[row]))

    def _line(self, record: _Record, mutation: Mutation) -> int:
        if mutation.position > record.embedded:
            beyond = f"{mutation}: {quote(record.name)} ends at position {record.length}"
            if record.embedded < record.length:
                beyond += f", of which the first {record.embedded} were embedded (max_length)"
            raise ValueError(beyond)
        line = record.first + mutation.position - 1
        stands = self._letters[line].decode()
        if stands != mutation.wild_type:
            raise ValueError(
                f"{mutation}: at position {mutation.position} of {quote(record.name)} stands "
                f"{stands}, not {mutation.wild_type}"
            )
        return line
