"""The report's figures, each drawn from plain numbers to an SVG element for an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from packedesm.report.axes import Axes, Axis, Entry, Legend, Ticks, round_ticks
from packedesm.report.svg import INK, colour, drawn

BLUE, RED = colour("blue"), colour("red")
OUTPUT_STYLES = {
    "mean": (BLUE, "circle"),
    "cls": (colour("green"), "square"),
    "max": (colour("purple"), "diamond"),
    "residue": (colour("ochre"), "up"),
    "logits": (colour("amber"), "down"),
    "log_likelihood": (BLUE, "left"),
    "masked_marginals": (colour("green"), "right"),
    "pseudo_perplexity": (colour("purple"), "plus"),
    "contacts": (colour("ochre"), "hexagon"),
}
# float64 cannot tell two cosines near 1 apart below this, and a logarithmic axis has no zero.
SMALLEST = 1e-16
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@drawn("Histogram of the lengths of all records")
def lengths(counts: np.ndarray, max_length: int | None) -> Axes:
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
    records, _edges = np.histogram(present, bins=edges, weights=counts[present])
    high = float(records.max()) * (1.05 if max_length is None else 1.14)
    axes = Axes(
        Axis(edges[0], edges[-1], "length (residues)", _length_ticks(*edges[[0, -1]]), True, False),
        Axis(0, high, "records", round_ticks(0, high, 5, _thousands, whole=True)),
    )
    for k in np.flatnonzero(records):
        axes.bar((edges[k], edges[k + 1]), (0, records[k]), BLUE)
    if max_length is not None:
        axes.limit_up(max_length, RED, f"limit {max_length:,}")
    return axes


@drawn("Tokens computed by packing and by two ways of padding")
def padding(tokens: int, padded_sorted: int, padded_arrival: int) -> Axes:
    """Draw the tokens computed with packing and with padded batches of the same budget."""
    computed = [tokens, padded_sorted, padded_arrival]
    names = ["packed\n(this run)", "padded,\nsorted by\nlength", "padded,\nin file order"]
    high, rows, padded = max(1, *computed) * 1.3, range(3), colour("amber")
    axes = Axes(
        Axis(0, high, "tokens that the model computes", round_ticks(0, high, 4, _short)),
        Axis(2.5, -0.5, "", [*zip(rows, names, strict=True)], False, False, INK, 0),
        Legend([Entry("protein", BLUE, "bar"), Entry("padding", padded, "bar")], 2),
    )
    for row, value in zip(rows, computed, strict=True):
        height = (row - 0.29, row + 0.29)
        axes.bar((0, tokens), height, BLUE)
        axes.bar((tokens, value), height, padded)
        axes.say(value, row, _short(value))
    return axes


@drawn("Residues embedded per second over the time of the run")
def throughput(seconds: Sequence[float], residues: Sequence[float]) -> Axes:
    """Draw the residues embedded per second, by all jobs together, from the first job's start.

    Parameters
    ----------
    seconds, residues
        Points of time since then, ascending, and the residues that were done by each; see
        `packedesm.report.course.course_of`.
    """
    edges, done = np.asarray(seconds), np.asarray(residues)
    start, stop = edges[0], edges[-1]
    scale, unit = _time_unit(stop)
    rates, mean = np.diff(done) / np.diff(edges), done[-1] / (stop - start)
    high, room = 1.05 * float(rates.max()) or 1.0, 0.03 * (stop - start)
    low, far = (start - room) / scale, (stop + room) / scale
    label = f"{unit} since the first job began"
    axes = Axes(
        Axis(low, far, label, round_ticks(low, far, 7, _short), False, False),
        Axis(0, high, "residues per second", round_ticks(0, high, 5, _short)),
        Legend([Entry(f"mean: {_short(mean)} per second", INK, "dashed")]),
    )
    axes.steps(edges / scale, rates, BLUE)
    axes.limit_across(mean, INK)
    return axes


@drawn("Distance from the reference of all that was verified")
def distances(records: list[dict], max_relative_l2: float) -> Axes:
    """Draw how far what was verified is from the reference, with the limit that passes.

    Parameters
    ----------
    records
        Dicts with ``length``, ``output`` and ``relative_l2``; that is None where a number was none,
        drawn as a cross at the top. All layers of an output look alike.
    """
    found = [record["relative_l2"] for record in records]
    return _over_lengths(records, found, max_relative_l2, "relative L2 distance")


@drawn("How far each verified vector is from pointing the same way as the reference")
def angles(records: list[dict], min_cosine: float) -> Axes:
    """Draw 1 minus the cosine of each verified vector with the reference; else as `distances`.

    The cosine is None where a number was none.
    """
    cosines = [record["cosine"] for record in records]
    found = [None if cosine is None else 1 - cosine for cosine in cosines]
    return _over_lengths(records, found, 1 - min_cosine, "1 \N{MINUS SIGN} cosine similarity")


def _over_lengths(
    records: list[dict], distances: list[float | None], limit: float, label: str
) -> Axes:
    """Scatter distances over lengths, one colour per output; None is a cross at the top."""
    points = [
        (record["length"], None if distance is None else max(distance, SMALLEST), record["output"])
        for record, distance in zip(records, distances, strict=True)
    ]
    known = [max(distance, SMALLEST) for distance in distances if distance is not None]
    # A limit of zero has no place on a logarithmic axis.
    marks = [mark for mark in (*known, limit) if mark > 0] or [SMALLEST]
    low, high = min(marks) / 3, max(marks) * 3
    high *= (high / low) ** 0.12  # so that a cross stands clear of the limit
    sizes = [record["length"] for record in records]
    short, long = min(sizes) / 1.6, max(sizes) * 1.6
    outputs = [*dict.fromkeys(record["output"] for record in records)]
    axes = Axes(
        Axis(short, long, "length (residues)", _length_ticks(short, long), True),
        Axis(low, high, label, _decades(low, high), True),
        _outputs_told(outputs),
    )
    for output in outputs:
        mine = [(size, far) for size, far, name in points if name == output and far is not None]
        axes.dots(mine, *OUTPUT_STYLES[output])
    axes.crosses_at_top([size for size, far, _name in points if far is None], RED)
    if limit > 0:
        axes.limit_across(limit, RED, "limit")
    return axes


def _outputs_told(outputs: list[str]) -> Legend:
    if len(outputs) < 2:
        return Legend(())
    # Names of heads' outputs are long: four beside one another leave no room for the axes.
    columns = 4 if len(max(outputs, key=len)) < 8 else 2
    return Legend([Entry(output, *OUTPUT_STYLES[output]) for output in outputs], columns)


def _length_ticks(low: float, high: float) -> Ticks:
    bases = (1, 2, 5) if high / low < 60 else (1, 3) if high / low < 500 else (1,)
    steps = [base * 10**power for power in range(9) for base in bases]
    within = [step for step in steps if low <= step <= high] or [round(math.sqrt(low * high))]
    return [(step, _thousands(step)) for step in within]


def _decades(low: float, high: float) -> Ticks:
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    step = -(-len(powers) // 6)
    return [(10.0**power, "10" + str(power).translate(_SUPERSCRIPT)) for power in powers[::step]]


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1, "seconds"
    return (60, "minutes") if seconds < 3 * 3600 else (3600, "hours")


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    for scale, name in ((1e9, " billion"), (1e6, " million")):
        if value >= scale:
            return f"{value / scale:.3g}{name}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
