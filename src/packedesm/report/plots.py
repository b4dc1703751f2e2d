"""The report's figures, each drawn from plain numbers to an SVG element for an HTML page."""

import io
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

INK, MUTED, GRID = "#1d2733", "#5b6776", "#e4e8ed"
BLUE, AMBER, RED = "#2b6cb0", "#f0b961", "#c2372e"
OUTPUT_STYLES = {
    "mean": (BLUE, "o"),
    "cls": ("#2f855a", "s"),
    "max": ("#805ad5", "D"),
    "residue": ("#b7791f", "^"),
}
STYLE: Any = {  # matplotlib's own type names every setting there is
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's own font
    "svg.hashsalt": "packedesm",  # without it every run names the clip paths anew
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}
WIDE, HALF = (9.6, 3.1), (5.2, 3.1)  # inches; the page scales them to its columns
FILL_POINTS, TIME_POINTS = 400, 80  # more would not be seen and would weigh the page down
# float64 cannot tell two cosines near 1 apart below this, and a logarithmic axis has no zero.
SMALLEST = 1e-16
DASHED = (0, (4, 3))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TAG: dict[str, Any] = {"ha": "right", "va": "bottom", "color": INK, "fontsize": 8.5}


def lengths(counts: np.ndarray, max_length: int | None) -> str:
    """Draw how many records have which length, on a logarithmic length axis.

    Parameters
    ----------
    counts : ndarray of int, shape (longest + 1,)
        Element L is the number of records of L residues.
    max_length
        Length limit to mark, in residues; None where records are embedded whole.
    """
    present = np.flatnonzero(counts)
    marks = present if max_length is None else np.append(present, max_length)
    edges = np.geomspace(marks.min() / 1.1, marks.max() * 1.1, 41)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(HALF)
        axes.hist(
            present,
            bins=edges.tolist(),
            weights=counts[present],
            color=BLUE,
            edgecolor="white",
            lw=0.4,
        )
        axes.set(xscale="log", xlabel="length (residues)", ylabel="records")
        _plain_log_ticks(axes)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.grid(axis="x", visible=False)
        if max_length is not None:
            axes.axvline(max_length, color=RED, linewidth=1, linestyle=DASHED)
            axes.margins(y=0.14)
            label = f"limit {max_length:,}"
            axes.text(max_length, 1, label, transform=axes.get_xaxis_transform(), **_TAG)
        return _svg(figure, "lengths", "Histogram of the lengths of all records")


def padding(tokens: int, padded_sorted: int, padded_arrival: int) -> str:
    """Draw the tokens computed with packing and with padded batches of the same budget."""
    computed = np.array([tokens, padded_sorted, padded_arrival])
    names = ["packed\n(this run)", "padded,\nsorted by length", "padded,\nin file order"]
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(HALF)
        axes.barh(names, [tokens] * 3, color=BLUE, height=0.58, label="protein")
        axes.barh(names, computed - tokens, left=tokens, color=AMBER, height=0.58, label="padding")
        for place, value in enumerate(computed):
            axes.annotate(
                _short(value), (value, place), (5, 0), textcoords="offset points", va="center"
            )
        axes.set(xlabel="tokens that the model computes", xlim=(0, computed.max() * 1.18))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        _legend_above(axes, 2)
        return _svg(figure, "padding", "Tokens computed by packing and by two ways of padding")


def fill(fills: np.ndarray) -> str:
    """Draw how full the packs are, the fullest first; the blue area is the fill of the run.

    Parameters
    ----------
    fills : ndarray of float, shape (P,)
        Fill of each pack, 0 to 1.
    """
    ordered = np.sort(fills)[::-1]
    groups = np.array_split(ordered, min(len(ordered), FILL_POINTS))
    edges = np.cumsum([0, *map(len, groups)])
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(HALF)
        axes.stairs(np.ones(1), [0, len(ordered)], fill=True, color="#d5dbe3", label="left empty")
        means = [group.mean() for group in groups]
        axes.stairs(means, edges, fill=True, color=BLUE, label="filled with protein")
        axes.set(xlabel="packs, fullest first", ylabel="share of the token budget")
        axes.set(xlim=(0, len(ordered)), ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(visible=False)
        _legend_above(axes, 2)
        return _svg(figure, "fill", "Fill of the packs in descending order")


def throughput(shards: Iterable[tuple[float, np.ndarray, np.ndarray]]) -> str:
    """Draw the residues embedded per second, by all jobs together, from the first job's start.

    Parameters
    ----------
    shards
        For each shard the second at which it began to embed, the seconds from then at which its
        packs were done (ascending), and the residues of these packs.
    """
    lines = [
        (begin + np.append(0, finished), np.append(0, np.cumsum(residues)))
        for begin, finished, residues in shards
        if len(finished)
    ]
    start, stop = min(line[0][0] for line in lines), max(line[0][-1] for line in lines)
    packs = sum(len(line[0]) - 1 for line in lines)
    edges = np.linspace(start, stop, min(TIME_POINTS, max(4, packs // 2)) + 1)
    done = sum(np.interp(edges, times, residues) for times, residues in lines)
    scale, unit = _time_unit(stop)
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(HALF)
        axes.stairs(np.diff(done) / np.diff(edges), edges / scale, fill=True, color=BLUE)
        mean = done[-1] / (stop - start)
        axes.axhline(
            mean, color=INK, linewidth=1, linestyle=DASHED, label=f"mean: {_short(mean)} per second"
        )
        _legend_above(axes, 1)
        axes.set(xlabel=f"{unit} since the first job began", ylabel="residues per second")
        axes.set(ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(_short))
        axes.grid(axis="x", visible=False)
        return _svg(figure, "throughput", "Residues embedded per second over the time of the run")


def accuracy(records: list[dict], min_cosine: float, max_relative_l2: float) -> str:
    """Draw how far each verified vector is from the reference, with the limits that pass.

    Parameters
    ----------
    records
        Dicts with ``length``, ``output``, ``relative_l2`` and ``cosine``; None for the last two
        where the vector was not a number, drawn as a cross at the top.
    min_cosine, max_relative_l2
        The limits of the run.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=WIDE, layout="constrained")
        left, right = figure.subplots(1, 2)
        lengths = [record["length"] for record in records]
        names = [record["output"] for record in records]
        distances = [record["relative_l2"] for record in records]
        _distances(left, lengths, distances, names, max_relative_l2)
        left.set_ylabel("relative L2 distance")
        cosines = [record["cosine"] for record in records]
        distances = [None if cosine is None else 1 - cosine for cosine in cosines]
        _distances(right, lengths, distances, names, 1 - min_cosine)
        right.set_ylabel("1 \N{MINUS SIGN} cosine similarity")
        if len(set(names)) > 1:
            left.legend(loc="upper left", ncols=4, bbox_to_anchor=(0, 1.16))
        return _svg(figure, "accuracy", "Distance of each verified vector from the reference")


def _distances(
    axes: Axes,
    lengths: list[int],
    distances: list[float | None],
    outputs: list[str],
    limit: float,
) -> None:
    """Scatter distances over lengths, one colour per output; None is a cross at the top."""
    axes.set(xscale="log", yscale="log", xlabel="length (residues)")
    for output in dict.fromkeys(outputs):
        colour, marker = OUTPUT_STYLES[output]
        points = [
            (length, max(distance, SMALLEST))
            for length, distance, name in zip(lengths, distances, outputs, strict=True)
            if name == output and distance is not None
        ]
        x, y = np.array(points).reshape(-1, 2).T
        axes.scatter(
            x,
            y,
            s=38,
            marker=marker,
            color=colour,
            alpha=0.8,
            edgecolor="white",
            label=output,
        )
    broken = [
        length for length, distance in zip(lengths, distances, strict=True) if distance is None
    ]
    if broken:
        top = axes.get_xaxis_transform()
        axes.scatter(broken, [0.95] * len(broken), s=70, marker="X", color=RED, transform=top)
    known = [max(distance, SMALLEST) for distance in distances if distance is not None]
    # A limit of zero has no place on a logarithmic axis.
    marks = [mark for mark in (*known, limit) if mark > 0] or [SMALLEST]
    low, high = min(marks) / 3, max(marks) * 3
    # Room at the top, so that a cross stands clear of the limit.
    axes.set(xlim=(min(lengths) / 1.5, max(lengths) * 1.5), ylim=(low, high * (high / low) ** 0.12))
    _plain_log_ticks(axes)
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.yaxis.set_minor_locator(NullLocator())
    if limit > 0:
        axes.axhline(limit, color=RED, linewidth=1, linestyle=DASHED)
        axes.text(1, limit, "limit", transform=axes.get_yaxis_transform(), **_TAG)


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=columns, handlelength=1, borderpad=0.2
    )


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    bases = (1, 2, 5) if high / low < 200 else (1, 3)
    steps = [base * 10**power for power in range(9) for base in bases]
    axes.set_xticks([step for step in steps if low <= step <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.xaxis.set_minor_locator(NullLocator())


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def _power_of_ten(value: float, _position: int | None = None) -> str:
    # matplotlib's own formatter sets formulas, which takes longer than the rest of the figure.
    return "10" + f"{np.log10(value):.0f}".translate(_SUPERSCRIPT)


def _thousands(value: float, _position: int | None = None) -> str:
    return f"{value:,.0f}"


def _short(value: float, _position: int | None = None) -> str:
    for scale, name in ((1e9, " billion"), (1e6, " million")):
        if value >= scale:
            return f"{value / scale:.3g}{name}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as one ``<svg>`` whose ids no other figure of the page shares."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening, rest = svg.split(">", 1)
    (view_box,) = re.findall(r'viewBox="[^"]*"', opening)
    label = f'role="img" aria-label="{escape(description)}"'
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {links} {view_box} {label}>{rest}"
