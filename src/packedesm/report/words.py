"""What the report calls things, and how it writes numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from packedesm.errors import printable
from packedesm.outputs import Array
from packedesm.report.vectors import Apart

OUTPUTS = {
    "mean": "the mean over the residues of each protein",
    "cls": "the vector of the <cls> token that starts each protein",
    "max": "the largest value over the residues of each protein",
    "residue": "one vector per residue, the proteins back to back",
    "logits": "the logits of all 33 tokens at each residue",
    "log_likelihood": "the log likelihood of each residue, in one pass without masks",
    "masked_marginals": "log probabilities of the 20 amino acids at each residue, masked",
    "pseudo_perplexity": "the pseudo-perplexity of each protein, from masked passes",
    "contacts": "contact probabilities of pairs of residues: upper triangles, row by row",
}
FILES = {
    "index.parquet": "one line per protein, in the same order: id, description, length, flags",
    "skipped.tsv": "records without residues, which have no line in the index",
    "manifest.json": "model, checkpoint digest, shapes, versions; written last, so a folder that"
    " has it is complete",
    "verification.json": "each verified protein and how far it was from the reference",
    "metrics.json": "the numbers of this report",
    "packing.tsv": "fill of the packs and the padding avoided, shard by shard",
    "throughput.tsv": "speed and hardware use, shard by shard",
    "packedesm_mqc.json": "for MultiQC, with three more of such names: multiqc finds them",
}
CHOICES = {
    "dtype": "Number format of the computation",
    "output_dtype": "Number format of the files",
    "attention": "Attention",
    "kernels": "Kernels between products",
    "token_budget": "Tokens in a pack, at most",
}
"""What a job resolves for itself, by its name in the plan."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# How many times smaller than the distance of two close proteins an error is, and what that means.
_MEANINGS = (
    (1000, "Only proteins that are nearly identical could be told apart by so little."),
    (20, "That is small beside what tells proteins apart, but near ties can come out otherwise."),
    (0, "That is not small beside what tells similar proteins apart."),
)


def array(name: str) -> str:
    """Return what the array of a name holds."""
    found = Array.named(name)
    layer = "" if found.layer is None else f", from layer {found.layer}"
    return OUTPUTS[found.output.name] + layer


def meaning_of_error(error: float, apart: Apart) -> str:
    """Say what an error, relative to the length of a vector, means beside proteins' distances."""
    ratio = apart.close / error if error else float("inf")
    return next(words for least, words in _MEANINGS if ratio >= least)


def number(value: float | None, unit: str = "") -> str:
    """Format with about three digits, and no power of ten; what is unknown has no unit."""
    if value is None:
        return "unknown"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + unit


def percent(fraction: float | None) -> str:
    """Format a share of one; only what is complete looks complete."""
    if fraction is None:
        return "unknown"
    text = f"{fraction:.1%}"
    return "> 99.9%" if text == "100.0%" and fraction < 1 else text


def duration(seconds: float | None) -> str:
    """Format seconds, in minutes and hours where there are many."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float | None) -> str:
    """Format a number of bytes."""
    if value is None:
        return "unknown"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{value / 1024**power:.3g} {unit}"
    return f"{value} bytes"


def scientific(value: float | None) -> str:
    """Format with two digits, and a power of ten where the number is small or large."""
    if value is None:
        return "not a number"
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.2g}"
    digits, exponent = f"{value:.1e}".replace(".0e", "e").split("e")
    power = str(int(exponent)).translate(SUPERSCRIPTS)
    return f"{digits} \N{MULTIPLICATION SIGN} 10{power}"


def rounded(value: float) -> str:
    """Format a large number with two digits."""
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def _cosine(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.8f}"


def _neighbours(same: Mapping[str, Any]) -> str:
    """Format how many neighbours are the same; only where all are it looks so."""
    k, mean = same["k"], same["mean"]
    return f"{k} of {k}" if mean == k else f"{min(mean, k - 0.1):.1f} of {k}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


FILTERS: dict[str, Callable[..., Any]] = {
    "printable": printable,
    "count": "{:,}".format,
    "number": number,
    "percent": percent,
    "duration": duration,
    "bytes": size,
    "scientific": scientific,
    "rounded": rounded,
    "cosine": _cosine,
    "neighbours": _neighbours,
    "quoted": _quoted,
    "array_in_words": array,
}
"""What the page's template formats with."""
