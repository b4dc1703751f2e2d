"""The nearest vectors by cosine: exact, in memory that does not grow with their number.

Products of blocks in float32 find who may be among the nearest, and float64 decides. How far
float32 can be off is bounded (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1), so nobody is missed. The cosine of a pair comes out the same whatever block it was
found in, and the order of ties is that of the rows: the answer depends on the vectors alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

ROUNDING = 2.0**-24  # float32's unit roundoff
QUERIES = 2048  # rows in a block
_LOWEST = np.float32(-1e9)  # below every score, and above that of what is left out
_NUMBERS = 1 << 23  # most in an array of float64 that is made on the way: 64 MiB


@dataclass(frozen=True)
class Vectors:
    """Vectors with what is known of their proteins.

    Parameters
    ----------
    values : ndarray of float, shape (N, D)
        May be a memory map.
    proteins : ndarray of int, shape (N,)
        One number for each sequence, the same in all that are compared.
    same_as : ndarray of int, shape (N,)
        The first row with the same vector, bit for bit, as far as that is known: else its own.
    """

    values: np.ndarray
    proteins: np.ndarray
    same_as: np.ndarray

    @property
    def block(self) -> int:
        """How many vectors are looked at together."""
        return max(1, _NUMBERS // max(1, self.values.shape[1]))

    @cached_property
    def inverse_lengths(self) -> np.ndarray:
        """Float64 (N,): 1 over the length of each vector; 0 for those that point nowhere.

        These are of zeros, or hold what is not finite.
        """
        found = np.zeros(len(self.values))
        for rows in blocks(len(self.values), self.block):
            values = self.values[rows].astype(np.float64)
            values *= values  # squares of float32's numbers do not leave float64's range
            lengths = np.sqrt(values.sum(axis=1))
            good = np.isfinite(lengths) & (lengths > 0)
            found[rows][good] = 1 / lengths[good]
        return found

    @cached_property
    def distinct(self) -> np.ndarray:
        """Int64 (U,): rows that point somewhere, ascending, one of each vector."""
        own = self.same_as == np.arange(len(self.same_as))
        return np.flatnonzero(own & (self.inverse_lengths > 0))

    @cached_property
    def centre(self) -> np.ndarray:
        """Float64 (D,): the mean of the unit vectors of `distinct`."""
        total = np.zeros(self.values.shape[1])
        for rows in blocks(len(self.distinct), self.block):
            total += self.units(self.distinct[rows]).sum(axis=0)
        return total / max(1, len(self.distinct))

    def units(self, rows: np.ndarray) -> np.ndarray:
        """Return some vectors over their lengths: float64 (n, D)."""
        units = self.values[rows].astype(np.float64)
        units *= self.inverse_lengths[rows, None]
        return units

    def copies(self, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Return at most the `most` first rows with the vector of each of some `distinct` rows.

        Returns
        -------
        places, found : ndarray of int64, shape (C,)
            The place in `rows`, and a row with that vector.
        """
        order, sorted_rows = self._by_vector
        first = np.searchsorted(sorted_rows, rows, side="left")
        counts = np.minimum(np.searchsorted(sorted_rows, rows, side="right") - first, most)
        places, within = ragged(counts)
        return places, order[first[places] + within]

    @cached_property
    def _by_vector(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.same_as, kind="stable")
        return order, self.same_as[order]


class Pairs(NamedTuple):
    """Places in a block of queries, each with a row of the targets."""

    queries: np.ndarray  # int64 (P,)
    rows: np.ndarray  # int64 (P,)


class Finder(Protocol):
    """Finds who may be among the nearest; `Exact` misses nobody."""

    def candidates(self, queries: Vectors, rows: np.ndarray, k: int) -> Pairs:
        """Return, of the targets' distinct rows of other proteins, at least the `k` nearest."""


class Exact:
    """Looks at every pair.

    Parameters
    ----------
    targets
        Among which to look.
    block
        How many are looked at together. It decides time and memory, and not what is found.
    """

    def __init__(self, targets: Vectors, block: int | None = None) -> None:
        self._targets = targets
        self._block = block or targets.block

    def candidates(self, queries: Vectors, rows: np.ndarray, k: int) -> Pairs:
        """Return those that can be among the nearest as far as float32 can tell."""
        targets, centre = self._targets, self._targets.centre
        residuals = queries.units(rows) - centre
        pool = _Pool(len(rows), k, self._errors(residuals))
        residuals, proteins = residuals.astype(np.float32), queries.proteins[rows]
        for inside in blocks(len(targets.distinct), self._block):
            chosen = targets.distinct[inside]
            others = targets.units(chosen)
            others -= centre
            scores = residuals @ others.astype(np.float32).T
            # What the centre adds to the product is the same for all queries.
            scores += self._along[inside]
            _leave_out(scores, proteins, targets.proteins[chosen])
            pool.add(scores, inside.start)
        return Pairs(pool.queries, targets.distinct[pool.columns])

    @cached_property
    def _along(self) -> np.ndarray:
        """Float32 (U,): what a target has along the centre."""
        return self._measured[0]

    def _errors(self, residuals: np.ndarray) -> np.ndarray:
        """Return how far each query's products can be off: float64 (n,).

        A sum of D products, in any order, is off by at most D roundings of the sum of their sizes,
        which the lengths of both bound; some more roundings are those of the numbers themselves.
        """
        width = residuals.shape[1]
        lengths = np.sqrt(np.sum(residuals * residuals, axis=1))
        return ROUNDING * (1.01 * (width + 4) * lengths * self._measured[1] + 12)

    @cached_property
    def _measured(self) -> tuple[np.ndarray, float]:
        """What each target has along the centre, and the largest distance of one from it."""
        targets, centre = self._targets, self._targets.centre
        along, radius = np.empty(len(targets.distinct), np.float32), 0.0
        for inside in blocks(len(targets.distinct), targets.block):
            units = targets.units(targets.distinct[inside])
            along[inside] = np.sum(units * centre, axis=1)
            units -= centre
            radius = max(radius, float(np.sqrt(np.sum(units * units, axis=1)).max(initial=0)))
        return along, radius


class Found(NamedTuple):
    """The nearest of some queries, query by query and the nearest first.

    First stand the query's duplicates: rows of the same sequence, in the order of rows.
    """

    queries: np.ndarray  # int64 (P,), rows of the queries
    rows: np.ndarray  # int64 (P,), of the targets
    cosines: np.ndarray  # float64 (P,); NaN where one of two duplicates points nowhere
    ranks: np.ndarray  # int64 (P,), from 1; 0 for duplicates


def nearest(
    targets: Vectors, queries: Vectors | None, k: int, finder: Finder, most_queries: int = QUERIES
) -> Iterator[Found]:
    """Yield the `k` nearest targets of every query, some queries at a time, in their order.

    Parameters
    ----------
    targets
        Among which to look. Those that point nowhere are near to none.
    queries
        None: the targets themselves, each without itself.
    k
        How many; fewer where there are fewer. Of duplicates of a query, which take no place of
        these, at most as many.
    finder
        One of `targets`.
    """
    alone = queries is None
    asked = targets if queries is None else queries
    sequences = np.argsort(targets.proteins, kind="stable")
    k = min(k, len(targets.values))
    # A query may have all the targets for candidates, if `k` says so.
    step = min(most_queries, max(1, _NUMBERS // max(1, k)))
    for rows in blocks(len(asked.values), step):
        block = np.arange(rows.start, rows.stop)
        able = block[asked.inverse_lengths[block] > 0]
        pairs = finder.candidates(asked, able, k)
        near = _ordered(targets, asked, able, pairs, k)
        same = _duplicates(targets, asked, block, sequences, k if not alone else k + 1)
        if alone:
            same = _first(same.queries, same.rows, same.queries != same.rows, k)
        cosines = _cosines(targets, asked, same)
        both = [
            np.concatenate(parts)
            for parts in zip(
                (same.queries, same.rows, cosines, np.zeros(len(cosines), np.int64)),
                near,
                strict=True,
            )
        ]
        order = np.lexsort((np.arange(len(both[0])), both[0]))
        yield Found(*(part[order] for part in both))


def blocks(count: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` that cover `count` rows."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for lists of these lengths the list and the place in it of each of their items."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - (np.cumsum(counts) - counts)[which]


class _Pool:
    """The targets that can be among the `k` nearest of some queries, as far as was looked."""

    def __init__(self, queries: int, k: int, errors: np.ndarray) -> None:
        self._k = k
        self._count = queries
        self._errors = 2 * errors  # of the k-th nearest, and of the one compared with it
        self._kth = np.full(queries, _LOWEST, np.float32)
        self.queries = np.empty(0, np.int64)
        self.columns = np.empty(0, np.int64)
        self._scores = np.empty(0, np.float32)

    def add(self, scores: np.ndarray, start: int) -> None:
        """Take what is near enough from a block of float32 (queries, targets)."""
        near = self._near(scores)
        if self._k < scores.shape[1] and len(near) > 4 * self._k * self._count:
            kth = np.partition(scores, -self._k, axis=1)[:, -self._k]
            self._kth = np.maximum(self._kth, kth)
            near = self._near(scores)
        queries, columns = np.divmod(near, scores.shape[1])
        self._keep(
            np.concatenate([self.queries, queries]),
            np.concatenate([self.columns, columns + start]),
            np.concatenate([self._scores, scores.ravel()[near]]),
        )

    def _near(self, scores: np.ndarray) -> np.ndarray:
        # Of a flat array: of one with rows NumPy looks for them four times as long.
        return np.flatnonzero((scores >= self._least()[:, None]).ravel())

    def _least(self) -> np.ndarray:
        """Float32 (queries,): what a score must have."""
        least = (self._kth - self._errors).astype(np.float32)
        return np.maximum(np.nextafter(least, np.float32(-np.inf)), _LOWEST)

    def _keep(self, queries: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> None:
        order = np.lexsort((-scores, queries))
        queries, columns, scores = queries[order], columns[order], scores[order]
        counts = np.bincount(queries, minlength=self._count)
        full = np.flatnonzero(counts >= self._k)
        last = (np.cumsum(counts) - counts)[full] + self._k - 1
        self._kth[full] = np.maximum(self._kth[full], scores[last])
        kept = scores >= self._least()[queries]
        self.queries, self.columns, self._scores = queries[kept], columns[kept], scores[kept]


def _leave_out(scores: np.ndarray, proteins: np.ndarray, others: np.ndarray) -> None:
    """Give the pairs of one protein with itself the score of what is never chosen."""
    shared = np.flatnonzero(np.isin(others, proteins))
    same = proteins[:, None] == others[shared]
    queries, columns = np.nonzero(same)
    scores[queries, shared[columns]] = -np.inf


def _ordered(
    targets: Vectors, asked: Vectors, rows: np.ndarray, pairs: Pairs, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return query, row, cosine and rank of the nearest among candidates."""
    found = Pairs(rows[pairs.queries], pairs.rows)
    cosines = _cosines(targets, asked, found)
    places, others = targets.copies(found.rows, k)
    queries, cosines = found.queries[places], cosines[places]
    order = np.lexsort((others, -cosines, queries))
    queries, others, cosines = queries[order], others[order], cosines[order]
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    ranks = 1 + ragged(np.diff(np.append(starts, len(queries))))[1]
    kept = ranks <= k
    return queries[kept], others[kept], cosines[kept], ranks[kept]


def _duplicates(
    targets: Vectors, asked: Vectors, rows: np.ndarray, sequences: np.ndarray, most: int
) -> Pairs:
    """Return the first targets of the same sequence as each query."""
    proteins, sorted_proteins = asked.proteins[rows], targets.proteins[sequences]
    first = np.searchsorted(sorted_proteins, proteins, side="left")
    counts = np.searchsorted(sorted_proteins, proteins, side="right") - first
    places, within = ragged(np.minimum(counts, most))
    return Pairs(rows[places], sequences[first[places] + within])


def _first(queries: np.ndarray, rows: np.ndarray, wanted: np.ndarray, most: int) -> Pairs:
    """Return the first `most` wanted pairs of each query; pairs are sorted by query."""
    queries, rows = queries[wanted], rows[wanted]
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    kept = ragged(np.diff(np.append(starts, len(queries))))[1] < most
    return Pairs(queries[kept], rows[kept])


def _cosines(targets: Vectors, asked: Vectors, pairs: Pairs) -> np.ndarray:
    """Return the cosines of pairs of rows, each by itself: float64 (P,), NaN if it has none."""
    found = np.empty(len(pairs.rows))
    for some in blocks(len(found), targets.block):
        queries, rows = pairs.queries[some], pairs.rows[some]
        products = asked.values[queries].astype(np.float64)
        scale = asked.inverse_lengths[queries] * targets.inverse_lengths[rows]
        with np.errstate(invalid="ignore"):  # infinity times zero
            products *= targets.values[rows]
            cosines = np.clip(products.sum(axis=1) * scale, -1, 1)
        found[some] = np.where(scale > 0, cosines, np.nan)
    return found
