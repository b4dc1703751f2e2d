"""`packedesm models` and `packedesm fetch`: which models there are by name, and to have one."""

from __future__ import annotations

import argparse
from typing import Any

from packedesm import config as configuration
from packedesm.commands.streams import answer
from packedesm.esm2.registry import MODELS


def add_fetch(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    parser = commands.add_parser("fetch", help="download a model and check it")
    parser.add_argument("model", help="a name that `packedesm models` lists")
    parser.add_argument("--checkpoints", default="auto", help="folder; default: fair-esm's own")
    parser.set_defaults(run=_fetch)


def add_models(commands: Any) -> None:
    """Add the command to a parser's subcommands."""
    commands.add_parser("models", help="list the models by name").set_defaults(run=_models)


def _fetch(options: argparse.Namespace) -> None:
    from packedesm.esm2.download import fetch, fetch_regression

    configuration.check_path("--checkpoints", options.checkpoints)
    folder = configuration.expanded("--checkpoints", options.checkpoints)
    path = fetch(options.model, folder)
    fetch_regression(options.model, folder)
    answer(str(path))


def _models(_options: argparse.Namespace) -> None:
    lines = [f"{'name':<24}{'layers':>8}{'width':>8}{'heads':>8}{'parameters':>14}"]
    for name, geometry in MODELS.items():
        row = (geometry.layers, geometry.width, geometry.heads, geometry.parameters)
        lines.append(f"{name:<24}{row[0]:>8}{row[1]:>8}{row[2]:>8}{row[3] / 1e6:>12.1f} M")
    answer("\n".join(lines))
