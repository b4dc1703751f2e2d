"""Elements of SVG for an HTML page, in colours that the page names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from html import escape
from typing import ParamSpec, Protocol

import numpy as np

COLOURS = (
    *("ink", "muted", "grid", "card", "blue", "amber", "red", "green", "purple", "ochre"),
    *("length-1", "length-2", "length-3", "length-4", "length-5"),
    *("kind-1", "kind-2", "kind-3", "kind-4", "kind-5", "kind-6", "kind-7", "others", "none"),
)
"""Names of all colours of figures. What they are, in light and in dark, says the page's style."""

# Units of a figure. The page scales it to its column: on a phone text is then as large as on paper.
WIDTH, HEIGHT = 331.0, 212.0
LETTERS = 10.0  # their size
DASHED = "stroke-dasharray: 4 3"
# Outlines about a middle, of the size of a circle of radius 1.
_OUTLINES = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "up": ((0, -1.1), (1.1, 1), (-1.1, 1)),
    "down": ((0, 1.1), (1.1, -1), (-1.1, -1)),
    "left": ((-1.1, 0), (1, -1.1), (1, 1.1)),
    "right": ((1.1, 0), (-1, -1.1), (-1, 1.1)),
    "hexagon": ((0, -1.1), (0.95, -0.55), (0.95, 0.55), (0, 1.1), (-0.95, 0.55), (-0.95, -0.55)),
    "plus": (
        *((-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4)),
        *((0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)),
    ),
    "cross": (
        *((0, -0.5), (0.6, -1.1), (1.1, -0.6), (0.5, 0), (1.1, 0.6), (0.6, 1.1)),
        *((0, 0.5), (-0.6, 1.1), (-1.1, 0.6), (-0.5, 0), (-1.1, -0.6), (-0.6, -1.1)),
    ),
}
Given = ParamSpec("Given")


class Drawing(Protocol):
    """What has marks, which are elements."""

    @property
    def elements(self) -> Iterable[str]:
        """All of them, those that cover others last."""


def colour(name: str) -> str:
    """Return how a style names a colour of the page, one of `COLOURS`."""
    if name not in COLOURS:
        raise ValueError(f"{name} is no colour of the page")
    return f"var(--{name})"


INK, MUTED, GRID, CARD = map(colour, ("ink", "muted", "grid", "card"))


def drawn(description: str) -> Callable[[Callable[Given, Drawing]], Callable[Given, str]]:
    """Make of a function that returns a drawing one that returns it as an ``<svg>`` element.

    `description` says what the figure shows, for those who cannot see it.
    """
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-label="{escape(description)}" style="font-size: {LETTERS:g}px">'
    )

    def drawn_by(draw: Callable[Given, Drawing]) -> Callable[Given, str]:
        @wraps(draw)
        def element(*args: Given.args, **kwargs: Given.kwargs) -> str:
            return "\n".join([opening, *draw(*args, **kwargs).elements, "</svg>"])

        return element

    return drawn_by


def text_width(text: str) -> float:
    """Return about how wide a line of text is: the page's font is not known."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return LETTERS * (0.62 * (len(text) - wide) + wide)


def text(
    x: float, y: float, said: str, paint: str = INK, *, anchor: str = "start", turned: bool = False
) -> str:
    """Return lines of text whose middle is at the height `y`; `turned` ones read upwards."""
    lines = said.split("\n")
    top = y + LETTERS * (0.36 - 0.6 * (len(lines) - 1))
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return "".join(
        f'<text x="{x:.1f}" y="{top + 1.2 * LETTERS * k:.1f}" text-anchor="{anchor}"{turn} '
        f'style="fill: {paint}">{escape(line, quote=False)}</text>'
        for k, line in enumerate(lines)
    )


def line(start: tuple[float, float], stop: tuple[float, float], paint: str, more: str = "") -> str:
    """Return a straight line; `more` is added to its style."""
    (x1, y1), (x2, y2) = start, stop
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} style="stroke: {paint}; {more}"/>'


def area(points: Iterable[tuple[float, float]], paint: str, more: str = "") -> str:
    """Return a filled polygon; `more` is added to its style."""
    corners = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{corners}Z" style="fill: {paint}; {more}"/>'


def marker(x: float, y: float, shape: str, size: float, paint: str, more: str = "") -> str:
    """Return a circle, or another of the shapes by name, of `size` about from its middle."""
    if shape == "circle":
        style = f"fill: {paint}; {more}"
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" style="{style}"/>'
    return area([(x + size * dx, y + size * dy) for dx, dy in _OUTLINES[shape]], paint, more)


def cloud(places: np.ndarray, paint: str, size: float) -> str:
    """Return many dots, each once, in a tenth of the room of markers: lines that go nowhere.

    Parameters
    ----------
    places : ndarray of float, shape (N, 2)
        Told to a tenth of a unit.
    size
        The width of a dot.
    """
    dots = dict.fromkeys(f"M{x:.1f} {y:.1f}h0" for x, y in places.tolist())
    style = f"fill: none; stroke: {paint}; stroke-width: {size:.2f}; stroke-linecap: round"
    return f'<path d="{"".join(dots)}" style="{style}; opacity: 0.75"/>'


def stairs(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, floor: float
) -> list[tuple[float, float]]:
    """Return the outline of steps that stand on `floor`: N heights `y` between N + 1 places `x`."""
    tops = [(float(x[k + side]), float(y[k])) for k in range(len(y)) for side in (0, 1)]
    return [(float(x[0]), floor), *tops, (float(x[-1]), floor)]
