"""Some of the vectors: what their picture is drawn from, and how far two proteins are apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packedesm.files import reading
from packedesm.paths import Paths
from packedesm.sequences.index import read_rows

POINTS = 1000  # in the picture: more would cover one another
COMPARED = 300  # each with each
GROUPS = 5  # of lengths


class Vectors(NamedTuple):
    """Vectors of records that lie evenly over the rows of a run."""

    output: str
    values: np.ndarray  # float64 (N, D), finite
    lengths: np.ndarray  # int64 (N,), residues
    sequences: list[str]  # digests, by which repeats are known
    not_finite: int  # that were drawn too and have no place in a picture


class Apart(NamedTuple):
    """Distances between vectors of different proteins, over the mean length of the two vectors."""

    proteins: int
    median: float
    close: float  # one of a hundred pairs is closer


def read_vectors(paths: Paths, output: str, merged: dict[str, str]) -> Vectors:
    """Read the vectors of at most `POINTS` records, every k-th row.

    Parameters
    ----------
    output
        One that has a vector for each record.
    merged
        Digests of the merged files, by name.

    Raises
    ------
    Damaged
        If array or index are not as they were merged.
    """
    array_path = paths.array(output)
    with (
        reading(array_path, sha256=merged[array_path.name]),
        reading(paths.index, sha256=merged[paths.index.name]),
    ):
        array = np.load(array_path, mmap_mode="r")
        rows = np.unique(np.linspace(0, len(array) - 1, min(len(array), POINTS)).astype(np.int64))
        values = array[rows].astype(np.float64)
        records = list(read_rows(paths.index, rows))
    finite = np.isfinite(values).all(axis=1)
    kept = [record for record, is_kept in zip(records, finite, strict=True) if is_kept]
    return Vectors(
        output,
        values[finite],
        np.array([record["length"] for record in kept], dtype=np.int64),
        [record["sha256"] for record in kept],
        int((~finite).sum()),
    )


def principal_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where vectors are along their first two principal components.

    Parameters
    ----------
    values : ndarray of float, shape (N, D)
        N and D at least 2.

    Returns
    -------
    coordinates : ndarray of float64, shape (N, 2)
    shares : ndarray of float64, shape (2,)
        Of the variance, that each component holds; zeros where all vectors are the same.
    """
    centred = values - values.mean(axis=0)
    _left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    # An axis has no sign of its own; without one, libraries would draw mirror images.
    largest = np.abs(axes[:2]).argmax(axis=1)
    axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]
    total = float((sizes**2).sum())
    scale = np.abs(values).max(initial=0.0)
    if total <= (1e-6 * scale) ** 2:  # rounding
        return np.zeros((len(values), 2)), np.zeros(2)
    return centred @ axes.T, sizes[:2] ** 2 / total


def length_groups(lengths: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Divide lengths into at most `GROUPS` ranges that hold about as many each, short to long.

    Returns
    -------
    Of each the range as text, and bool (N,), its members.
    """
    shares = np.arange(1, GROUPS + 1) / GROUPS
    longest = np.unique(np.quantile(lengths, shares, method="inverted_cdf"))
    groups = np.searchsorted(longest, lengths)
    members = [groups == group for group in range(len(longest))]
    return [(_range(lengths[chosen]), chosen) for chosen in members]


def apart(vectors: Vectors) -> Apart | None:
    """Measure how far vectors of different proteins are apart; None with fewer than two."""
    _names, first = np.unique(vectors.sequences, return_index=True)
    first.sort()
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), COMPARED)).astype(int)]
    if len(chosen) < 2:
        return None
    values = vectors.values[chosen]
    norms = np.linalg.norm(values, axis=1)
    one, other = np.triu_indices(len(chosen), k=1)
    squares = norms[one] ** 2 + norms[other] ** 2 - 2 * (values @ values.T)[one, other]
    lengths = np.maximum((norms[one] + norms[other]) / 2, np.finfo(np.float64).tiny)
    distances = np.sqrt(np.maximum(squares, 0)) / lengths
    return Apart(len(chosen), float(np.median(distances)), float(np.quantile(distances, 0.01)))


def _range(lengths: np.ndarray) -> str:
    low, high = int(lengths.min()), int(lengths.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
