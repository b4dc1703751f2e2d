"""`packedesm variants`: score mutations by the masked marginals of a finished run."""

from __future__ import annotations

import argparse
from pathlib import Path

from packedesm.commands.streams import answer
from packedesm.files import write_text
from packedesm.paths import STANDARD_INPUT
from packedesm.results.new_file import check_new_file
from packedesm.results.variants import as_csv, score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.add_argument("results", help="folder of results with the output masked_marginals")
    parser.add_argument(
        "--mutations",
        required=True,
        metavar="CSV",
        help="file with the columns id and mutations, such as A42G, or A42G:C50S for both "
        "together; - is standard input",
    )
    parser.add_argument(
        "-o", "--output", metavar="CSV", help="new file for the scores; default: standard output"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_new_file(output, Path(options.results))
    given = STANDARD_INPUT if options.mutations == "-" else Path(options.mutations)
    text = as_csv(score(Path(options.results), given))
    if output is None:
        answer(text.removesuffix("\n"))
    else:
        write_text(output, text)
