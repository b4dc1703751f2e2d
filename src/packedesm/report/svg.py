"""How the report's figures look, and how one becomes an SVG element that the page can colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any, Concatenate, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = (
    *("ink", "muted", "grid", "card", "blue", "amber", "red", "green", "purple", "ochre"),
    *("length-1", "length-2", "length-3", "length-4", "length-5"),
    *("kind-1", "kind-2", "kind-3", "kind-4", "kind-5", "kind-6", "kind-7", "others", "none"),
)
"""Names of all colours of figures. What they are, in light and in dark, says the page's style."""


def colour(name: str) -> str:
    """Return what matplotlib is told in place of a colour of the page, by one of `COLOURS`."""
    return f"#{1 + COLOURS.index(name):06x}"  # matplotlib does not write out that text is black


INK, MUTED = colour("ink"), colour("muted")
STYLE: Any = {  # matplotlib's own type names every setting there is
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "svg.hashsalt": "packedesm",  # without it every run names the clip paths anew
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": colour("grid"),
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
# Inches. The page scales a figure to its column: on a phone text is then as large as on paper.
_SIZE = (4.6, 2.95)
Given = ParamSpec("Given")
_PAINT = re.compile(r"(fill|stroke): #([0-9a-f]{6})")
_PATH = re.compile(r' d="([^"]*)"')
_DOT = re.compile(r"M (\S+) (\S+) \s*L \1 \2\s*")  # a line that goes nowhere, with round ends


def drawn(
    description: str,
) -> Callable[[Callable[Concatenate[Axes, Given], None]], Callable[Given, str]]:
    """Make of a function that draws on axes one that returns the figure as an ``<svg>`` element.

    The function's name begins all ids of the element, so that no two figures of a page share one.
    `description` says what the figure shows, for those who cannot see it.
    """

    def drawn_by(draw: Callable[Concatenate[Axes, Given], None]) -> Callable[Given, str]:
        @wraps(draw)
        def element(*args: Given.args, **kwargs: Given.kwargs) -> str:
            with matplotlib.rc_context(STYLE):
                figure = Figure(figsize=_SIZE, layout="constrained")
                draw(figure.subplots(), *args, **kwargs)
                return _element(figure, draw.__name__, description)

        return element

    return drawn_by


def _as_dots(found: re.Match) -> str:
    """Return a path of dots in a quarter of its room, to a tenth of a point."""
    if not found[1] or _DOT.sub("", found[1]):
        return found[0]
    dots = dict.fromkeys(f"M{float(x):.1f} {float(y):.1f}h0" for x, y in _DOT.findall(found[1]))
    return f' d="{"".join(dots)}"'


def _as_variable(found: re.Match) -> str:
    return f"{found[1]}: var(--{COLOURS[int(found[2], 16) - 1]})"


def _element(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = _PATH.sub(_as_dots, _PAINT.sub(_as_variable, svg))
    opening, rest = svg.split(">", 1)
    (view_box,) = re.findall(r'viewBox="[^"]*"', opening)
    label = f'role="img" aria-label="{escape(description)}"'
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {links} {view_box} {label}>{rest}"
