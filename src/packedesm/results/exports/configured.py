"""The exports that a configuration asks for: whether they can be, and those that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packedesm.results.exports.formats import FORMATS


def add_missing(root: Path, formats: Sequence[str]) -> list[str]:
    """Write those exports that finished results shall have and have not; return their formats.

    Raises as `packedesm.results.exports.export.export`.
    """
    if not formats:
        return []
    from packedesm.results.exports.export import export_missing
    from packedesm.results.reader import Results

    return export_missing(Results(root), formats)


def expect_possible(formats: Sequence[str], outputs: Sequence[str]) -> None:
    """Raise UserError before a run whose results could not be exported as they shall be.

    Parameters
    ----------
    formats
        Names from `FORMATS`.
    outputs
        What the run is asked for.
    """
    for name in formats:
        FORMATS[name].choose(outputs)


def expect_installed(formats: Sequence[str]) -> None:
    """Raise UserError if something that a format needs is not installed."""
    for name in formats:
        FORMATS[name].expect_installed()
