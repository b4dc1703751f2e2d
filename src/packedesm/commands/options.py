"""Options that several commands have: those of the configuration, and folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from packedesm import config as configuration

# Options of the workflow that the command replaces by its own arguments.
_NOT_OPTIONS = ("fasta", "results")


def folder(text: str) -> str:
    """Return the name of a folder as it is given; argparse tells if it is empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return text


def results_folder(text: str) -> Path:
    """Return the folder that was given as -o as an absolute path."""
    configuration.check_path("-o", text)
    return Path(configuration.expanded("-o", text)).absolute()


def schema_options() -> list[tuple[str, str, dict[str, Any]]]:
    """Return flag, dotted key and schema of each option that the configuration knows."""
    options = []
    for key, described in configuration.schema()["properties"].items():
        for below, inner in described.get("properties", {}).items():
            options.append((f"--{key}-{below}".replace("_", "-"), f"{key}.{below}", inner))
        if key not in _NOT_OPTIONS and "properties" not in described:
            options.append((f"--{key}".replace("_", "-"), key, described))
    return options


def in_words(described: dict[str, Any]) -> str:
    """Return the help on an option from its schema."""
    default = described["default"]
    if isinstance(default, list):
        default = ",".join(default) or "none"
    text = described["description"].replace("%", "%%")
    return f"{text} Default: {str(default).lower() if isinstance(default, bool) else default}."
