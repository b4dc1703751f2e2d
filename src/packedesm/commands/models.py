"""`packedesm models`: which models there are by name."""

from __future__ import annotations

import argparse

from packedesm.commands.streams import answer
from packedesm.esm2.registry import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add those of the command to its parser."""
    parser.set_defaults(run=_run)


def _run(_options: argparse.Namespace) -> None:
    lines = [f"{'name':<24}{'layers':>8}{'width':>8}{'heads':>8}{'parameters':>14}"]
    for name, geometry in MODELS.items():
        row = (geometry.layers, geometry.width, geometry.heads, geometry.parameters)
        lines.append(f"{name:<24}{row[0]:>8}{row[1]:>8}{row[2]:>8}{row[3] / 1e6:>12.1f} M")
    answer("\n".join(lines))
