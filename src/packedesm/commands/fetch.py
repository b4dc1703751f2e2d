"""`packedesm fetch`: have a model that is published."""

from __future__ import annotations

import argparse

from packedesm import config as configuration
from packedesm.commands.streams import answer
from packedesm.esm2.download import fetch, fetch_regression


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.add_argument("model", help="a name that `packedesm models` lists")
    parser.add_argument("--checkpoints", default="auto", help="folder; default: fair-esm's own")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    configuration.check_path("--checkpoints", options.checkpoints)
    folder = configuration.expanded("--checkpoints", options.checkpoints)
    path = fetch(options.model, folder)
    fetch_regression(options.model, folder)
    answer(str(path))
