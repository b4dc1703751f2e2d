"""Some of the vectors: what their picture is drawn from, and how far two proteins are apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from packedesm.files import reading
from packedesm.outputs import RECORD, Array
from packedesm.paths import Paths
from packedesm.sequences.index import read_rows

POINTS = 20_000  # in a map: more would cover one another, and weigh the page down
COMPARED = 300  # each with each
GROUPS = 5  # of lengths, or of other numbers
# More directions than are asked for are followed: the first ones then stand still sooner.
_MORE, _ROUNDS = 10, 100


class Vectors(NamedTuple):
    """Vectors of records that lie evenly over the rows of a run."""

    output: str
    values: np.ndarray  # float32 (N, D), finite
    lengths: np.ndarray  # int64 (N,), residues
    ids: list[str]
    sequences: list[str]  # digests, by which repeats are known
    not_finite: int  # that were drawn too and have no place in a picture


class Apart(NamedTuple):
    """Distances between vectors of different proteins, over the mean length of the two vectors."""

    proteins: int
    median: float
    close: float  # one of a hundred pairs is closer


def foremost(names: Iterable[str]) -> Array:
    """Return which array of a run the page shows and names: one of vectors of records, if any.

    That is the first output of these, else the first one; and of its layers the last.
    """
    arrays = [Array.named(name) for name in names]
    pooled = (array for array in arrays if is_pooled(array))
    output = next(pooled, arrays[0]).output
    layers = [array for array in arrays if array.output == output]
    return max(layers, key=lambda array: math.inf if array.layer is None else array.layer)


def is_pooled(array: Array) -> bool:
    """Tell whether an array has a vector for each record."""
    return array.output.layered and array.per == RECORD


def read_vectors(paths: Paths, output: str, merged: Mapping[str, str]) -> Vectors:
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
        values = array[rows].astype(np.float32)
        records = list(read_rows(paths.index, rows, ["id", "length", "sha256"]))
    finite = np.isfinite(values).all(axis=1)
    kept = [record for record, is_kept in zip(records, finite, strict=True) if is_kept]
    return Vectors(
        output,
        values[finite],
        np.array([record["length"] for record in kept], dtype=np.int64),
        [record["id"] for record in kept],
        [record["sha256"] for record in kept],
        int((~finite).sum()),
    )


def principal_components(values: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return where vectors are along their first principal components.

    By subspace iteration (Halko, Martinsson, Tropp 2011, SIAM Review 53, algorithm 4.4): of all
    components only the first ones are looked for.

    Parameters
    ----------
    values : ndarray of float, shape (N, D)
        N and D at least `count`.
    count
        How many components.

    Returns
    -------
    coordinates : ndarray of float64, shape (N, count)
    shares : ndarray of float64, shape (count,)
        Of the variance, that each component holds; zeros where all vectors are the same.
    """
    centred = values - values.mean(axis=0, dtype=np.float64)
    total = float(np.einsum("ij,ij->", centred, centred))
    scale = float(np.abs(values).max(initial=0.0))
    if total <= (1e-6 * scale) ** 2:  # rounding
        return np.zeros((len(values), count)), np.zeros(count)
    followed = min(count + _MORE, *centred.shape)
    random = np.random.default_rng(0).standard_normal((centred.shape[1], followed))
    axes, before = np.linalg.qr(random)[0], np.zeros(count)
    for _round in range(_ROUNDS):
        image = centred @ axes
        sizes, inside = np.linalg.eigh(image.T @ image)
        sizes, axes = sizes[::-1][:count], axes @ inside[:, ::-1]
        if np.abs(sizes - before).max() <= 1e-12 * total:
            break
        before = sizes
        axes = np.linalg.qr(centred.T @ (centred @ axes))[0]
    axes = axes[:, :count]
    # An axis has no sign of its own; without one, libraries would draw mirror images.
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, range(count)])
    return centred @ axes, np.maximum(sizes, 0) / total


def ranges(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Divide numbers into at most `GROUPS` ranges that hold about as many each, from low to high.

    Returns
    -------
    Of each the range as text, and bool (N,), its members.
    """
    shares = np.arange(1, GROUPS + 1) / GROUPS
    highest = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    groups = np.searchsorted(highest, values)
    members = [groups == group for group in range(len(highest))]
    return [(_range(values[chosen]), chosen) for chosen in members]


def apart(vectors: Vectors) -> Apart | None:
    """Measure how far vectors of different proteins are apart; None with fewer than two."""
    _names, first = np.unique(vectors.sequences, return_index=True)
    first.sort()
    chosen = first[np.linspace(0, len(first) - 1, min(len(first), COMPARED)).astype(int)]
    if len(chosen) < 2:
        return None
    values = vectors.values[chosen].astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    one, other = np.triu_indices(len(chosen), k=1)
    squares = norms[one] ** 2 + norms[other] ** 2 - 2 * (values @ values.T)[one, other]
    lengths = np.maximum((norms[one] + norms[other]) / 2, np.finfo(np.float64).tiny)
    distances = np.sqrt(np.maximum(squares, 0)) / lengths
    return Apart(len(chosen), float(np.median(distances)), float(np.quantile(distances, 0.01)))


def _range(values: np.ndarray) -> str:
    whole = (values == np.round(values)).all() and np.abs(values).max() < 1e15
    low, high = (
        f"{value:,.0f}" if whole else f"{value:.3g}" for value in (values.min(), values.max())
    )
    return low if low == high else f"{low} to {high}"
