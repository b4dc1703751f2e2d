"""Two axes and what is drawn between them, placed in the units of the axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from packedesm.report.svg import (
    CARD,
    DASHED,
    GRID,
    HEIGHT,
    LETTERS,
    MUTED,
    WIDTH,
    area,
    cloud,
    line,
    marker,
    stairs,
    text,
    text_width,
)

_LINE = 1.5 * LETTERS  # of labels and legends
_TICK = 3.5
_SWATCH = 16.0  # room for it, with the gap to its label
_DOT = 3.1
Ticks = Sequence[tuple[float, str]]


class Axis(NamedTuple):
    """One axis: where it begins and ends, and what stands beside it."""

    low: float
    high: float
    label: str = ""
    ticks: Ticks = ()  # places, each with its text
    log: bool = False
    grid: bool = True  # with a line through the plane at each tick
    paint: str = MUTED  # of the ticks' texts
    reach: float = _TICK  # of the ticks

    def share(self, values: np.ndarray | float) -> np.ndarray:
        """Return where values lie from the axis's beginning, 0, to its end, 1."""
        low, high, places = self.low, self.high, np.asarray(values, dtype=float)
        if self.log:
            low, high, places = math.log(low), math.log(high), np.log(places)
        return (places - low) / (high - low)


class Entry(NamedTuple):
    """What a legend says of one kind of mark."""

    label: str
    paint: str
    shape: str  # of a marker, "bar", or "dashed" for a line


class Legend(NamedTuple):
    """The entries, above the plane in columns, or beside it, below one another, under a title."""

    entries: Sequence[Entry]
    columns: int = 1
    title: str | None = None  # then beside

    @property
    def beside(self) -> float:
        """The room that it takes at the right."""
        if self.title is None:
            return 0.0
        labels = max((text_width(entry.label) for entry in self.entries), default=0.0)
        return max(text_width(self.title), _SWATCH + labels) + 8

    @property
    def above(self) -> float:
        """The room that it takes at the top."""
        return 0.0 if self.title is not None else _LINE * -(-len(self.entries) // self.columns)

    def elements(self, left: float, middle: float) -> Iterator[str]:
        """Yield its marks and texts: above from `left`, or beside from there, about `middle`."""
        if self.title is None:
            room = _SWATCH + max((text_width(entry.label) for entry in self.entries), default=0)
            for place, entry in enumerate(self.entries):
                row, column = divmod(place, self.columns)
                yield _entry(entry, left + column * (room + 12), _LINE * (row + 0.5))
            return
        top = middle - _LINE * (len(self.entries)) / 2
        yield text(left, top, self.title)
        for row, entry in enumerate(self.entries, 1):
            yield _entry(entry, left, top + _LINE * row)


_NO_LEGEND = Legend(())


@dataclass
class Axes:
    """A plane between two axes.

    Parameters
    ----------
    x, y
        The axes, to the right and up.
    legend
        What the marks mean.
    """

    x: Axis
    y: Axis
    legend: Legend = _NO_LEGEND
    marks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        labels = [part for _, said in self.y.ticks for part in said.split("\n")]
        widest = max(map(text_width, labels), default=0.0)
        self._left = widest + (6 if labels else 2) + (_LINE if self.y.label else 0)
        last = max((text_width(said) / 2 for _, said in self.x.ticks), default=0.0)
        self._right = WIDTH - max(self.legend.beside, last, 2)
        self._top = max(self.legend.above + 3, LETTERS)
        below = (_LINE if self.x.label else 0) + (_LINE if self.x.ticks else 2)
        self._bottom = HEIGHT - below - 3

    def across(self, values: np.ndarray | float) -> np.ndarray:
        """Return how far from the figure's left side values of the x axis are."""
        return self._left + self.x.share(values) * (self._right - self._left)

    def down(self, values: np.ndarray | float) -> np.ndarray:
        """Return how far below the figure's top values of the y axis are."""
        return self._bottom - self.y.share(values) * (self._bottom - self._top)

    def bar(self, x: tuple[float, float], y: tuple[float, float], paint: str) -> None:
        """Fill what is between two values of each axis."""
        (x1, x2), (y1, y2) = self.across(np.array(x)).tolist(), self.down(np.array(y)).tolist()
        self.marks.append(area([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], paint))

    def steps(self, edges: np.ndarray, heights: np.ndarray, paint: str) -> None:
        """Fill steps from the x axis up: N `heights` between N + 1 `edges`."""
        outline = stairs(self.across(edges), self.down(heights), self._bottom)
        self.marks.append(area(outline, paint))

    def limit_up(self, x: float, paint: str, said: str) -> None:
        """Draw a dashed line from the x axis up, and say at its end what it is."""
        place = float(self.across(x))
        self.marks.append(line((place, self._bottom), (place, self._top), paint, DASHED))
        # Where the words would begin left of the figure they stand at the other side of the line.
        anchor = "end" if place > text_width(said) else "start"
        self.marks.append(text(place, self._top - LETTERS / 2, said, anchor=anchor))

    def limit_across(self, y: float, paint: str, said: str = "") -> None:
        """Draw a dashed line from side to side, and say above its end what it is."""
        place = float(self.down(y))
        self.marks.append(line((self._left, place), (self._right, place), paint, DASHED))
        self.marks += [text(self._right, place - 0.7 * LETTERS, said, anchor="end")] if said else []

    def say(self, x: float, y: float, said: str) -> None:
        """Write to the right of a place."""
        self.marks.append(text(float(self.across(x)) + 5, float(self.down(y)), said))

    def dots(self, points: Iterable[tuple[float, float]], paint: str, shape: str) -> None:
        """Draw markers of a shape that `packedesm.report.svg.marker` knows."""
        style = f"opacity: 0.8; stroke: {CARD}"
        for x, y in points:
            place = float(self.across(x)), float(self.down(y))
            self.marks.append(marker(*place, shape, _DOT, paint, style))

    def crosses_at_top(self, x: Iterable[float], paint: str) -> None:
        """Draw crosses for what has no place on the y axis."""
        top = self._top + 0.05 * (self._bottom - self._top)
        self.marks += [
            marker(float(self.across(value)), top, "cross", 1.4 * _DOT, paint) for value in x
        ]

    def cloud(self, coordinates: np.ndarray, paint: str, size: float) -> None:
        """Draw many dots: float (N, 2)."""
        places = np.stack([self.across(coordinates[:, 0]), self.down(coordinates[:, 1])], axis=1)
        self.marks.append(cloud(places, paint, size))

    @property
    def elements(self) -> Iterator[str]:
        """What `packedesm.report.svg.drawn` writes: the axes below the marks."""
        middle = (self._top + self._bottom) / 2
        yield from self._grid()
        yield from self.marks
        yield line((self._left, self._bottom), (self._right, self._bottom), MUTED)
        yield line((self._left, self._bottom), (self._left, self._top), MUTED)
        if self.x.label:
            centre = (self._left + self._right) / 2
            yield text(centre, HEIGHT - _LINE / 2, self.x.label, anchor="middle")
        if self.y.label:
            yield text(_LINE / 2, middle, self.y.label, anchor="middle", turned=True)
        beside = self.legend.title is not None
        yield from self.legend.elements(self._right + 8 if beside else self._left, middle)

    def _grid(self) -> Iterator[str]:
        for value, said in self.x.ticks:
            place = float(self.across(value))
            if self.x.grid:
                yield line((place, self._bottom), (place, self._top), GRID)
            yield line((place, self._bottom), (place, self._bottom + self.x.reach), MUTED)
            yield text(place, self._bottom + _LINE * 0.7, said, self.x.paint, anchor="middle")
        for value, said in self.y.ticks:
            place = float(self.down(value))
            if self.y.grid:
                yield line((self._left, place), (self._right, place), GRID)
            yield line((self._left, place), (self._left - self.y.reach, place), MUTED)
            yield text(self._left - 5, place, said, self.y.paint, anchor="end")


def round_ticks(
    low: float, high: float, most: int, said: Callable[[float], str], *, whole: bool = False
) -> Ticks:
    """Return at most `most` + 1 multiples of a round number from `low` to `high`, with texts.

    Parameters
    ----------
    said
        Makes the text of a value.
    whole
        Whether only whole numbers mean something.
    """
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(k * unit for k in (1, 2, 2.5, 5, 10) if k * unit >= raw * (1 - 1e-9))
    step = math.ceil(step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(k * step, said(k * step)) for k in range(first, last + 1)]


def _entry(entry: Entry, x: float, y: float) -> str:
    middle = x + _SWATCH / 2 - 3
    if entry.shape == "bar":
        corners = [(x, y - 3.5), (x + 10, y - 3.5), (x + 10, y + 3.5), (x, y + 3.5)]
        swatch = area(corners, entry.paint)
    elif entry.shape == "dashed":
        swatch = line((x, y), (x + 11, y), entry.paint, DASHED)
    else:
        swatch = marker(middle, y, entry.shape, _DOT, entry.paint)
    return swatch + text(x + _SWATCH, y, entry.label)
