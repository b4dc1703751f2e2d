"""Folders that a run writes to: whether it can, and how much room there is."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from packedesm.doctor.findings import FAULT, NOTE, OK, Finding
from packedesm.errors import Fault
from packedesm.files import explained

_TRIED = 1 << 20  # bytes: a disk that has room for this much is not full
_PART = "Disk"


def place(name: str, folder: Path, needed: int, advice: str, *, vital: bool) -> Finding:
    """Return what is said of a folder, which need not be there; nothing is left in it.

    Parameters
    ----------
    needed
        Bytes that must be free so that all is well.
    advice
        What to do where it is not.
    vital
        Whether a run fails then.
    """
    amiss = FAULT if vital else NOTE
    facts: dict[str, Any] = {"path": str(folder), "free_bytes": None, "writable": False}
    try:
        with explained(folder):
            above = _there(folder)
            facts["free_bytes"] = free = shutil.disk_usage(above).free
            _try_to_write(above)
    except (Fault, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        said = f"{folder}: {why}" if why else str(error).partition("; ")[0]
        return Finding(_PART, name, said, advice, amiss, facts)
    facts["writable"] = True
    said = f"{gigabytes(free)} free at {folder}" + ("" if above == folder else ", not made yet")
    if free >= needed:
        return Finding(_PART, name, said, None, OK, facts)
    return Finding(_PART, name, f"{said}: {gigabytes(needed)} wanted", advice, amiss, facts)


def gigabytes(size: float) -> str:
    """Return bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there; OSError if it can be none."""
    for path in (folder, *folder.parents):
        try:
            path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                raise
        else:
            return path
    raise FileNotFoundError(f"{folder}: nothing of this path is there")


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as handle:
        handle.write(os.urandom(_TRIED))  # zeros may take no room
        handle.flush()
        os.fsync(handle.fileno())
