"""What a number format does to the vectors of proteins: told of the sample, and never judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from packedesm.errors import plural
from packedesm.outputs import Array
from packedesm.reference.vectors import Protein
from packedesm.report.stored import Stored
from packedesm.report.vectors import is_pooled

_LEAST = 3  # proteins: of two, each is the other's neighbour whatever their vectors
_NEAREST = 10  # neighbours of a protein, as `packedesm neighbours` lists by itself
_ROUNDING = float(np.finfo(np.float32).eps)  # cosines that are so close are equal in float32
_QUERIES = 256  # proteins that are compared with all others at once


def certify(
    stored: Stored, proteins: Iterable[Protein], made: Iterable[Array]
) -> list[dict[str, Any]]:
    """Measure each array that has a vector for each protein against the reference.

    Of proteins whose embedded residues are the same the first speaks: they have one vector, and
    would be each other's neighbours in any number format.

    Parameters
    ----------
    stored
        The vectors of the results.
    proteins
        The sample.
    made
        The arrays of the run.

    Returns
    -------
    list of dict
        One for each such array; none without proteins. ``proteins`` counts those compared;
        ``plain``, ``centred`` and ``neighbours`` are those of `measure`, None if ``left_out`` says
        why.
    """
    distinct: dict[str, Protein] = {}
    for protein in proteins:
        distinct.setdefault(protein.sequence[: protein.embedded_length], protein)
    entries = []
    for array in made if distinct else ():
        if not is_pooled(array):
            continue
        mine = [protein for protein in distinct.values() if array.name in protein.vectors]
        found = [np.asarray(stored.of(array, protein), np.float64) for protein in mine]
        expected = [protein.vectors[array.name] for protein in mine]
        figures = dict.fromkeys(("plain", "centred", "neighbours"))
        if (left_out := _obstacle(found, expected)) is None:
            figures = measure(np.stack(found), np.stack(expected))
            neighbours = figures["neighbours"]
            neighbours["row"] = mine[neighbours.pop("place")].row
        entries.append(
            {"array": array.name, "proteins": len(mine), "left_out": left_out, **figures}
        )
    return entries


def measure(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Compare vectors with those of the reference, also without what all of these share.

    Parameters
    ----------
    found, expected : ndarray of float64, shape (N, D)
        Finite and not zero, of at least three proteins; no line of `expected` is their mean.

    Returns
    -------
    dict
        ``plain``: the ``median`` and the ``worst`` (largest) ``relative_l2``, and the same of the
        ``cosine``, of which the smallest is the worst. ``centred``: these after the mean of
        `expected` is subtracted from both. ``neighbours``: of the ``k`` nearest by cosine
        ``among`` the N - 1 others, how many are the same, as the ``mean`` over the proteins and the
        ``fewest``, which is that of ``place`` in the lines. Who is, to the rounding of float32, as
        near as the k-th nearest of `expected` counts as the same: float32 itself may take either.
    """
    mean = expected.mean(axis=0)
    # Among fewer, ten would be nearly all others, which are the same whatever the vectors are.
    among = len(expected) - 1
    k = min(_NEAREST, among // 2)
    same = _same_neighbours(found, expected, k)
    place = int(same.argmin())
    return {
        "plain": _distances(found, expected),
        "centred": _distances(found - mean, expected - mean),
        "neighbours": {
            **{"k": k, "among": among},
            **{"mean": float(same.mean()), "fewest": int(same[place]), "place": place},
        },
    }


def _obstacle(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> str | None:
    """Return why vectors cannot be measured, None if they can."""
    if len(expected) < _LEAST:
        return (
            f"{plural(len(expected), 'different protein')} verified; it takes {_LEAST} to say "
            "something of their mean and their neighbours"
        )
    pairs = zip(found, expected, strict=True)
    if any(one.shape != other.shape for one, other in pairs):
        return "a vector has not as many numbers as the reference's"
    for vectors in (np.stack(found), np.stack(expected)):
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            return "a vector is zero or holds what is not finite"
    # So it is where all have one vector, such as that of the <cls> token before the first layer.
    truth = np.stack(expected)
    aside = np.linalg.norm(truth - truth.mean(axis=0), axis=1)
    if (aside <= _ROUNDING * np.linalg.norm(truth, axis=1)).any():
        return (
            "the reference has a vector that is the mean of all to the rounding of float32: there "
            "is nothing that an error could be related to"
        )
    return None


def _distances(found: np.ndarray, expected: np.ndarray) -> dict[str, dict[str, float]]:
    relative = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    cosines = np.sum(_units(found) * _units(expected), axis=1)
    return {
        "relative_l2": {"median": float(np.median(relative)), "worst": float(relative.max())},
        "cosine": {"median": float(np.median(cosines)), "worst": float(cosines.min())},
    }


def _units(vectors: np.ndarray) -> np.ndarray:
    """Return vectors over their lengths; one of zeros, whose cosines count as zero, as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float64).tiny)


def _same_neighbours(found: np.ndarray, expected: np.ndarray, k: int) -> np.ndarray:
    """Return how many of the `k` nearest of each line are the same: int64 (N,)."""
    found, expected = _units(found), _units(expected)
    same = np.empty(len(found), np.int64)
    for start in range(0, len(found), _QUERIES):
        rows = np.arange(start, min(start + _QUERIES, len(found)))
        true, now = expected[rows] @ expected.T, found[rows] @ found.T
        for cosines in (true, now):
            cosines[np.arange(len(rows)), rows] = -np.inf  # nobody is a neighbour of itself
        kth = np.partition(true, -k, axis=1)[:, -k, None]
        nearest = np.argsort(-now, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(true, nearest, axis=1) >= kth - _ROUNDING
        same[rows] = near.sum(axis=1)
    return same
