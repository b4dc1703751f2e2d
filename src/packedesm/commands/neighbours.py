"""`packedesm neighbours`: list the nearest proteins of each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from packedesm.commands.streams import standard_output
from packedesm.files import atomic_path
from packedesm.outputs import LAST
from packedesm.results.neighbours import EXACT_ROWS, KINDS, Search, write_neighbours
from packedesm.results.new_file import check_new_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.add_argument("results", type=Path, help="folder of finished results")
    parser.add_argument(
        "--queries", type=Path, help="results of the same model: look for the neighbours of these"
    )
    parser.add_argument("-k", type=_positive, default=10, help="neighbours of each. Default: 10.")
    parser.add_argument(
        "--array", default="mean", help=f"which vectors: {', '.join(KINDS)}. Default: mean."
    )
    parser.add_argument(
        "--layer",
        type=_layer,
        default=LAST,
        help="of which layer, as the run was asked for it. Default: last.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="new file for the table (TSV). Default: standard output."
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--approximate",
        action="store_true",
        default=None,
        help=f"by an index that may miss some; default above {EXACT_ROWS:,} proteins",
    )
    how.add_argument(
        "--exact",
        dest="approximate",
        action="store_false",
        help="look at every pair, however many there are",
    )
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _layer(text: str) -> int | str:
    if text == LAST:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a layer, nor {LAST}") from None


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Open a file that is there whole or not at all, or standard output."""
    if output is not None:
        with (
            atomic_path(output) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as table,
        ):
            yield table
        return
    with standard_output() as table:
        yield table


def _run(options: argparse.Namespace) -> None:
    search = Search(
        options.results,
        options.queries,
        options.array,
        options.layer,
        options.k,
        options.approximate,
    )
    if options.output is not None:
        check_new_file(options.output, *filter(None, (search.results, search.queries)))
    with _opened(options.output) as table:
        write_neighbours(search, table)
