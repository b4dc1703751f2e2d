"""What jobs have measured on this kind of machine, kept in the user's cache folder for the next."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from packedesm.errors import Fault
from packedesm.files import read_json, write_json

logger = logging.getLogger(__name__)


def read_measured(name: str) -> dict[str, Any]:
    """Return what `write_measured` kept in the file of this name; nothing if it cannot be read."""
    try:
        found = read_json(_folder() / name)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_measured(name: str, known: dict[str, Any]) -> None:
    """Keep `known` in the file of this name; where that fails it is measured again next time."""
    path = _folder() / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    except (OSError, Fault) as error:  # a home that cannot be written to
        logger.info("what was measured is not remembered: %s", error)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packedesm"
