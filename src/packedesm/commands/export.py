"""`packedesm export`: write finished results as other tools read them."""

from __future__ import annotations

import argparse
from pathlib import Path

from packedesm.commands.options import folder, results_folder
from packedesm.commands.streams import say
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import plural
from packedesm.results.exports.formats import FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
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
        type=folder,
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
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from packedesm.results.exports.export import Asked, export  # here: help needs it not
    from packedesm.results.reader import Results

    arrays = tuple(name.strip() for name in (options.arrays or "").split(",") if name.strip())
    fasta = tuple(map(Path, options.fasta or ()))
    place = results_folder(options.output) if options.output else None
    with stopping_on_signals():
        results = Results(options.results)
        written = export(results, Asked(options.format, options.keys, arrays, fasta), place)
        names = ", ".join(map(str, written))
        say(f"{names}: {plural(len(results), 'record')} of {options.results}")
