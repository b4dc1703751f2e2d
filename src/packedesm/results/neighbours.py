"""The nearest proteins of each, by the cosine of their vectors."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from packedesm.errors import UserError, plural
from packedesm.outputs import LAST, OUTPUTS, RECORD
from packedesm.paths import Paths
from packedesm.results.approximate import Approximate, faiss
from packedesm.results.nearest import Exact, Finder, Found, Vectors, nearest
from packedesm.results.reader import Results

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

EXACT_ROWS = 1_000_000
"""Most vectors among which an exact search is the default."""

COLUMNS = ("query", "rank", "neighbour", "cosine", "duplicate", "query_row", "neighbour_row")
KINDS = [output.name for output in OUTPUTS.values() if output.layered and output.per == RECORD]
"""Outputs by which neighbours are found: one vector for each protein."""


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Parameters
    ----------
    results
        Folder of finished results, among whose proteins to look.
    queries
        Another one of the same model, for whose proteins to look; None: for those of `results`.
    array, layer
        By which vectors: ``mean``, ``cls`` or ``max``, of the ``last`` layer or one by its number,
        as fair-esm counts them.
    k
        How many neighbours of each.
    approximate
        Whether an index may miss some; None: if there are more than `EXACT_ROWS` to look among.
    """

    results: Path
    queries: Path | None = None
    array: str = "mean"
    layer: int | str = LAST
    k: int = 10
    approximate: bool | None = None


def write_neighbours(search: Search, table: TextIO) -> None:
    """Write the nearest proteins of each as a table of tab-separated values.

    Columns are `COLUMNS`: ids, the rank from 1, the cosine, whether the neighbour has the very
    sequence of the query, and rows, counted from 0. Neighbours are proteins of other sequences.
    Those of the same stand before them with the rank 0, at most k of each query; the query itself
    is left out. Equal cosines stand in the order of rows. Proteins whose vector is zero or not
    finite have no neighbours and are none's.

    Raises
    ------
    UserError
        If there are no such results or arrays, those of the queries are of another model, or an
        approximate search lacks its library.
    """
    from packedesm.progress import Progress

    results = Results(search.results)
    values, name = _array(results, search)
    proteins = [_column(search.results, "sha256")]
    if search.queries is not None:
        asked = Results(search.queries)
        _check_same_model(search, results, asked)
        asked_values, _name = _array(asked, search)
        proteins.append(_column(search.queries, "sha256"))
    numbers = _numbered(proteins)
    targets = Vectors(values, numbers[0], _same_as(search.results))
    ids = asked_ids = _column(search.results, "id")
    queries = None
    if search.queries is not None:
        queries = Vectors(asked_values, numbers[1], _same_as(search.queries))
        asked_ids = _column(search.queries, "id")
    finder = _finder(targets, search)
    for vectors, folder in ((targets, search.results), (queries, search.queries)):
        if vectors is not None and (lost := int((vectors.inverse_lengths == 0).sum())):
            logger.warning(
                "%s: %s of %s zero or not finite; they have no neighbours and are none's",
                *(folder, plural(lost, "vector"), f"{name} are" if lost > 1 else f"{name} is"),
            )
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    with Progress("neighbours", len(asked_ids), "proteins") as progress:
        done = 0
        for found in nearest(targets, queries, search.k, finder):
            writer.writerows(_lines(found, asked_ids, ids))
            last = int(found.queries.max(initial=done - 1)) + 1
            progress.add(last - done)
            done = last
        progress.add(len(asked_ids) - done)


def _lines(found: Found, asked_ids: pa.ChunkedArray, ids: pa.ChunkedArray) -> Iterator[tuple]:
    from packedesm.sequences.arrow import numbers

    query_ids = asked_ids.take(numbers(found.queries)).to_pylist()
    neighbour_ids = ids.take(numbers(found.rows)).to_pylist()
    cosines = ["" if np.isnan(cosine) else f"{cosine:.8f}" for cosine in found.cosines]
    duplicate = ["no" if rank else "yes" for rank in found.ranks]
    rows = (found.queries.tolist(), found.rows.tolist())
    columns = (query_ids, found.ranks.tolist(), neighbour_ids, cosines, duplicate, *rows)
    return zip(*columns, strict=True)


def _finder(targets: Vectors, search: Search) -> Finder:
    count, approximate = len(targets.values), search.approximate
    if approximate is None and count > EXACT_ROWS:
        approximate = True
        try:
            faiss()
        except UserError as error:
            raise UserError(
                f"{search.results}: to look at every pair of {count:,} proteins takes long, and "
                f"{error}; or say --exact"
            ) from None
    if not approximate:
        return Exact(targets)
    logger.info(
        "%s: an approximate search among %d proteins; it can miss some, --exact does not",
        *(search.results, count),
    )
    return Approximate(targets)


def _array(results: Results, search: Search) -> tuple[np.ndarray, str]:
    """Return the (N, D) array that is asked for, and its name."""
    if search.array not in KINDS:
        raise UserError(
            f"--array {search.array}: neighbours are found by vectors of whole proteins; give one "
            f"of {', '.join(KINDS)}"
        )
    name = results.name(search.array, search.layer)
    return results.array(name), name


def _check_same_model(search: Search, results: Results, asked: Results) -> None:
    models = [found.manifest["model"] for found in (results, asked)]
    if models[0]["sha256"] != models[1]["sha256"]:
        raise UserError(
            f"{search.queries}: is of another model ({models[1]['model']}, SHA-256 "
            f"{models[1]['sha256'][:12]}…) than {search.results} ({models[0]['model']}, "
            f"{models[0]['sha256'][:12]}…); only vectors of the same weights can be compared"
        )


def _column(folder: Path, name: str) -> pa.ChunkedArray:
    from packedesm.results.index_file import index_columns

    return index_columns(Paths(folder).index, [name])[name]


def _same_as(folder: Path) -> np.ndarray:
    """Return the row whose vector was copied to each, or its own: int64 (N,)."""
    from packedesm.results.index_file import index_columns
    from packedesm.sequences.arrow import to_numpy
    from packedesm.sequences.index import embedded_as

    return to_numpy(embedded_as(index_columns(Paths(folder).index, ["row", "duplicate_of"])))


def _numbered(columns: list[pa.ChunkedArray]) -> list[np.ndarray]:
    """Return one number for each distinct text of all columns: int (N,) for each column."""
    import pyarrow as pa

    from packedesm.sequences.arrow import to_numpy

    # Large: the digests of tens of millions of sequences are more than 2 GiB of text.
    chunks = [chunk.cast(pa.large_string()) for column in columns for chunk in column.chunks]
    encoded = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode()
    numbers = to_numpy(encoded.indices)
    return np.split(numbers, np.cumsum([len(column) for column in columns])[:-1])
