"""The maps of the report: where each vector lies beside the others, on a plane."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from packedesm.errors import printable
from packedesm.options import ReportOptions
from packedesm.report.annotations import Annotations
from packedesm.report.axes import Axes, Axis, Entry, Legend
from packedesm.report.svg import colour, drawn
from packedesm.report.vectors import Vectors, principal_components, ranges

_LENGTHS = [colour(f"length-{step}") for step in range(1, 6)]  # low to high
_KINDS = [colour(f"kind-{step}") for step in range(1, 8)]
_OTHERS, _NONE = colour("others"), colour("none")
_DIRECTIONS = 50  # that t-SNE sees: the others hold little but noise
_LEAST = 5  # different proteins, that have neighbours and others
_LETTERS = 18  # of a label


class Group(NamedTuple):
    """Dots of one colour."""

    label: str
    members: np.ndarray  # bool (N,)
    paint: str


class Plane(NamedTuple):
    """Where the dots lie, and what the axes are called; empty where they mean nothing."""

    coordinates: np.ndarray  # float (N, 2)
    across: str
    up: str


def draw_maps(
    vectors: Vectors, annotations: Annotations | None, options: ReportOptions
) -> tuple[dict[str, Any], dict[str, Markup]]:
    """Return what the page says of the maps, and the figures: none where there is nothing to see.

    Parameters
    ----------
    vectors
        Of the proteins to be shown.
    annotations
        By which the maps are drawn in other colours too, if there are any.
    options
        Which maps, and the seed of what is random.

    Raises
    ------
    UserError
        If the library of a map is not installed.
    """
    said = {"output": vectors.output, "shown": len(vectors.values), "lost": vectors.not_finite}
    different = len(set(vectors.sequences))
    if different < 3:
        return said | {"kind": "few"}, {}
    coordinates, shares = principal_components(vectors.values)
    if not shares.any():
        return said | {"kind": "same"}, {}
    by_length = length_groups(vectors.lengths)
    first = f"first component ({shares[0]:.0%} of the variance)"
    plane = Plane(coordinates, first, f"second ({shares[1]:.0%})")
    figures = {"vectors": vectors_by_length(plane, by_length)}
    said |= {"kind": "drawn", "share": float(shares.sum()), "column": None, "tsne": None}
    near = None
    if options.map == "tsne":
        said["tsne"] = different >= _LEAST
        if different >= _LEAST:
            near = Plane(_neighbourhoods(vectors.values, options.seed), "", "")
            figures["neighbourhoods"] = neighbourhoods_by_length(near, by_length)
    if annotations is not None:
        values = [annotations.values.get(name) for name in vectors.ids]
        groups = value_groups(values)
        said["column"], said["file"] = printable(annotations.column), annotations.path.name
        said["without"] = sum(value is None for value in values)
        label = _shortened(annotations.column)
        figures["vectors_by_value"] = vectors_by_value(plane, groups, label)
        if near is not None:
            figures["neighbourhoods_by_value"] = neighbourhoods_by_value(near, groups, label)
    return said, {name: Markup(svg) for name, svg in figures.items()}


def length_groups(lengths: np.ndarray) -> list[Group]:
    """Divide lengths into ranges that hold about as many each, short to long."""
    return _painted(ranges(lengths), _LENGTHS)


def value_groups(values: list[str | None]) -> list[Group]:
    """Divide proteins by a column: numbers into ranges, of names the seven most frequent.

    Those that are of no group that is named stand first, and so below the others.
    """
    present = [value for value in values if value is not None]
    missing = np.array([value is None for value in values])
    numbers = [_number(value) for value in present]
    counts = Counter(present)
    if len(counts) > len(_KINDS) + 1 and None not in numbers:
        known = np.full(len(values), np.nan)
        known[~missing] = numbers
        spans = [(label, _within(members, ~missing)) for label, members in ranges(known[~missing])]
        groups, others = _painted(spans, _LENGTHS), np.zeros(len(values), bool)
    else:
        # With one more than there are colours, that one would have to share its colour anyway.
        named = sorted(counts, key=lambda value: (-counts[value], value))[: len(_KINDS)]
        held = np.array(["" if value is None else value for value in values])
        members = [(_shortened(name), (held == name) & ~missing) for name in named]
        groups = [Group(*both, paint) for both, paint in zip(members, _KINDS, strict=False)]
        others = ~missing & ~np.isin(held, named)
    rest = [Group("no value", missing, _NONE), Group("others", others, _OTHERS)]
    return [*(group for group in rest if group.members.any()), *groups]


@drawn("The vectors along their first two principal components, coloured by length")
def vectors_by_length(plane: Plane, groups: list[Group]) -> Axes:
    """Draw each vector as a dot where its first two principal components are."""
    return _draw(plane, groups, "residues")


@drawn("The vectors along their first two principal components, coloured by an annotation")
def vectors_by_value(plane: Plane, groups: list[Group], title: str) -> Axes:
    """Draw each vector as a dot where its first two principal components are."""
    return _draw(plane, groups, title)


@drawn("The vectors with those that are alike beside one another (t-SNE), coloured by length")
def neighbourhoods_by_length(plane: Plane, groups: list[Group]) -> Axes:
    """Draw each vector as a dot near to those that it is like."""
    return _draw(plane, groups, "residues")


@drawn("The vectors with those that are alike beside one another (t-SNE), by an annotation")
def neighbourhoods_by_value(plane: Plane, groups: list[Group], title: str) -> Axes:
    """Draw each vector as a dot near to those that it is like."""
    return _draw(plane, groups, title)


def _draw(plane: Plane, groups: list[Group], title: str) -> Axes:
    coordinates = plane.coordinates
    low, high = coordinates.min(axis=0), coordinates.max(axis=0)
    room = 0.06 * np.maximum(high - low, 0.2 * (high - low).max())
    (left, below), (right, above) = low - room, high + room
    entries = [Entry(group.label, group.paint, "circle") for group in groups]
    axes = Axes(
        Axis(left, right, plane.across), Axis(below, above, plane.up), Legend(entries, title=title)
    )
    # So that a thousand dots and twenty thousand both can be seen.
    size = 4 * min(1.0, (1000 / len(coordinates)) ** 0.35)
    for group in groups:
        axes.cloud(coordinates[group.members], group.paint, size)
    return axes


def _neighbourhoods(values: np.ndarray, seed: int) -> np.ndarray:
    """Return where t-SNE puts vectors: float64 (N, 2); the same on every run with a seed.

    openTSNE rather than umap-learn: it compiles nothing when it is first used, and its result is
    the same for any number of threads.
    """
    from openTSNE import TSNE

    count = min(_DIRECTIONS, *values.shape)
    reduced, _shares = principal_components(values, count)
    start = reduced[:, :2] * (1e-4 / max(float(reduced[:, 0].std()), np.finfo(float).tiny))
    perplexity = min(30.0, (len(values) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, initialization=start, random_state=seed % 2**32, n_jobs=1)
    return np.asarray(tsne.fit(reduced), dtype=np.float64)


def _painted(spans: list[tuple[str, np.ndarray]], paints: list[str]) -> list[Group]:
    """Give the last of `paints` to ranges from low to high."""
    chosen = paints[-len(spans) :]
    return [Group(*span, paint) for span, paint in zip(spans, chosen, strict=True)]


def _within(members: np.ndarray, known: np.ndarray) -> np.ndarray:
    found = np.zeros(len(known), bool)
    found[known] = members
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _shortened(text: str) -> str:
    """Return a label that stands beside a figure."""
    text = printable(text)
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1].rstrip()}…"
