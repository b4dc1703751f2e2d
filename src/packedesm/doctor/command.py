"""The options of `packedesm doctor`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any


def add_doctor(
    commands: Any,
    options: Iterable[tuple[str, str, str]],
    folder: Callable[[str], str],
    run: Callable[[argparse.Namespace], None],
) -> None:
    """Add the command to `commands`, the subparsers of another.

    Parameters
    ----------
    options
        Flag, key and help of the options of a run that it takes too.
    folder
        Reads the name of one.
    run
        What it does.
    """
    doctor = commands.add_parser("doctor", help="tell whether a run would work on this machine")
    doctor.add_argument(
        "-o", "--output", type=folder, default="results", help="folder for the results"
    )
    for flag, key, told in options:
        doctor.add_argument(flag, dest=key, metavar="VALUE", help=told)
    doctor.add_argument(
        "--digests", action="store_true", help="read large files of models too, to their end"
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.set_defaults(run=run)
