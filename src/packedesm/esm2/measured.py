"""What jobs have measured on this kind of machine, kept in the user's cache folder for the next."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packedesm.errors import Fault
from packedesm.files import read_json, write_json

logger = logging.getLogger(__name__)


def read_measured(name: str, figures: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what `write_measured` kept in the file of this name, by key.

    What cannot be read is left out, and so is an entry whose `figures` are not positive numbers.
    """
    try:
        found = read_json(measured_folder() / name)
    except (OSError, ValueError, RuntimeError):  # the last: no home, or brackets without end
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: entry for key, entry in found.items() if _is_whole(entry, figures)}


def write_measured(name: str, key: str, entry: dict[str, Any]) -> None:
    """Keep `entry` in the file of this name; where that fails it is measured again next time.

    What others have kept there meanwhile stays.
    """
    try:
        path = measured_folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, read_measured(name, tuple(entry)) | {key: entry})
    except (OSError, Fault, RuntimeError) as error:  # no home, or one that cannot be written to
        logger.info("what was measured is not remembered: %s", error)


def _is_whole(entry: Any, figures: Sequence[str]) -> bool:
    return isinstance(entry, dict) and all(
        type(entry.get(figure)) in (int, float) and 0 < entry[figure] < math.inf
        for figure in figures
    )


def measured_folder() -> Path:
    """Return the folder of what was measured; RuntimeError where the user has no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packedesm"
