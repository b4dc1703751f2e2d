"""The report's figures, each drawn from plain numbers to an SVG element for an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from packedesm.report.svg import INK, colour, drawn

BLUE, RED = colour("blue"), colour("red")
OUTPUT_STYLES = {
    "mean": (BLUE, "o"),
    "cls": (colour("green"), "s"),
    "max": (colour("purple"), "D"),
    "residue": (colour("ochre"), "^"),
    "logits": (colour("amber"), "v"),
    "log_likelihood": (BLUE, "<"),
    "masked_marginals": (colour("green"), ">"),
    "pseudo_perplexity": (colour("purple"), "P"),
    "contacts": (colour("ochre"), "h"),
}
# float64 cannot tell two cosines near 1 apart below this, and a logarithmic axis has no zero.
SMALLEST = 1e-16
DASHED = (0, (4, 3))
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TAG: dict[str, Any] = {"ha": "right", "va": "bottom", "color": INK}


@drawn("Histogram of the lengths of all records")
def lengths(axes: Axes, counts: np.ndarray, max_length: int | None) -> None:
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
    axes.hist(
        present,
        bins=edges.tolist(),
        weights=counts[present],
        color=BLUE,
        edgecolor=colour("card"),
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


@drawn("Tokens computed by packing and by two ways of padding")
def padding(axes: Axes, tokens: int, padded_sorted: int, padded_arrival: int) -> None:
    """Draw the tokens computed with packing and with padded batches of the same budget."""
    computed = np.array([tokens, padded_sorted, padded_arrival])
    names = ["packed\n(this run)", "padded,\nsorted by\nlength", "padded,\nin file order"]
    axes.barh(names, [tokens] * 3, color=BLUE, height=0.58, label="protein")
    axes.barh(
        names, computed - tokens, left=tokens, color=colour("amber"), height=0.58, label="padding"
    )
    for place, value in enumerate(computed):
        axes.annotate(
            _short(value), (value, place), (5, 0), textcoords="offset points", va="center"
        )
    axes.set(xlabel="tokens that the model computes", xlim=(0, max(1, computed.max() * 1.3)))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    _legend_above(axes, 2)


@drawn("Residues embedded per second over the time of the run")
def throughput(axes: Axes, seconds: Sequence[float], residues: Sequence[float]) -> None:
    """Draw the residues embedded per second, by all jobs together, from the first job's start.

    Parameters
    ----------
    seconds, residues
        Points of time since then, ascending, and the residues that were done by each; see
        `packedesm.report.course.course_of`.
    """
    edges, done = np.asarray(seconds), np.asarray(residues)
    scale, unit = _time_unit(edges[-1])
    axes.stairs(np.diff(done) / np.diff(edges), edges / scale, fill=True, color=BLUE)
    mean = done[-1] / (edges[-1] - edges[0])
    axes.axhline(
        mean, color=INK, linewidth=1, linestyle=DASHED, label=f"mean: {_short(mean)} per second"
    )
    _legend_above(axes, 1)
    axes.set(xlabel=f"{unit} since the first job began", ylabel="residues per second")
    axes.set(ylim=(0, None))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(axis="x", visible=False)


@drawn("Distance from the reference of all that was verified")
def distances(axes: Axes, records: list[dict], max_relative_l2: float) -> None:
    """Draw how far what was verified is from the reference, with the limit that passes.

    Parameters
    ----------
    records
        Dicts with ``length``, ``output`` and ``relative_l2``; that is None where a number was none,
        drawn as a cross at the top. All layers of an output look alike.
    """
    found = [record["relative_l2"] for record in records]
    _over_lengths(axes, records, found, max_relative_l2)
    axes.set_ylabel("relative L2 distance")


@drawn("How far each verified vector is from pointing the same way as the reference")
def angles(axes: Axes, records: list[dict], min_cosine: float) -> None:
    """Draw 1 minus the cosine of each verified vector with the reference; else as `distances`.

    The cosine is None where a number was none.
    """
    cosines = [record["cosine"] for record in records]
    found = [None if cosine is None else 1 - cosine for cosine in cosines]
    _over_lengths(axes, records, found, 1 - min_cosine)
    axes.set_ylabel("1 \N{MINUS SIGN} cosine similarity")


def _over_lengths(
    axes: Axes, records: list[dict], distances: list[float | None], limit: float
) -> None:
    """Scatter distances over lengths, one colour per output; None is a cross at the top."""
    lengths = [record["length"] for record in records]
    outputs = [record["output"] for record in records]
    axes.set(xscale="log", yscale="log", xlabel="length (residues)")
    for output in dict.fromkeys(outputs):
        paint, marker = OUTPUT_STYLES[output]
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
            color=paint,
            alpha=0.8,
            edgecolor=colour("card"),
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
    if len(set(outputs)) > 1:
        # Names of heads' outputs are long: four beside one another leave no room for the axes.
        _legend_above(axes, 4 if len(max(outputs, key=len)) < 8 else 2)
    if limit > 0:
        axes.axhline(limit, color=RED, linewidth=1, linestyle=DASHED)
        axes.text(1, limit, "limit", transform=axes.get_yaxis_transform(), **_TAG)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=columns, handlelength=1, borderpad=0.2
    )


def _plain_log_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    bases = (1, 2, 5) if high / low < 60 else (1, 3) if high / low < 500 else (1,)
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
