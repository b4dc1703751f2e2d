"""`packedesm export`: its options, and what it answers; and the exports of a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from packedesm.errors import plural
from packedesm.results.exports.formats import FORMATS


def add_options(parser: argparse.ArgumentParser, path: Callable[[str], str]) -> None:
    """Let a parser know the options of the command; `path` reads one that is a path."""
    formats = "; ".join(f"{format.name}: {format.says}" for format in FORMATS.values())
    keys = "; ".join(
        f"{format.name}: {', '.join(format.keys)}"
        for format in FORMATS.values()
        if len(format.keys) > 1
    )
    parser.add_argument("results", help="folder of finished results")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help=formats)
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        help="the file, such as x.h5, or a folder for the files. Default: the folder exports of "
        "the results.",
    )
    parser.add_argument(
        "--keys",
        help=f"what records are called ({keys}). Default: their ids. Where a format cannot hold "
        "one, a table beside the file tells what took its place.",
    )
    parser.add_argument(
        "--arrays",
        help="which arrays, such as mean,mean.layer3,residue. Default: what the format is for.",
    )
    parser.add_argument(
        "--fasta",
        nargs="+",
        help="the FASTA files of the run, where an export needs the sequences and they lie "
        "elsewhere now",
    )


def run(options: argparse.Namespace, place: Path | None) -> str:
    """Write the export that is asked for; return what there is to say of it.

    Parameters
    ----------
    options
        With what `add_options` added.
    place
        See `packedesm.results.exports.export.export`; which says what this raises.
    """
    from packedesm.results.exports.export import Asked, export  # here: help needs it not
    from packedesm.results.reader import Results

    arrays = tuple(name.strip() for name in (options.arrays or "").split(",") if name.strip())
    fasta = tuple(map(Path, options.fasta or ()))
    results = Results(options.results)
    written = export(results, Asked(options.format, options.keys, arrays, fasta), place)
    names = ", ".join(map(str, written))
    return f"{names}: {plural(len(results), 'record')} of {options.results}"


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
