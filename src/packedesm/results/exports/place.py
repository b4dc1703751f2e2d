"""Where an export is written: beside its place, and renamed to it when it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from packedesm.files import TEMPORARY, explained, fsync, remove_folder

_LOCK = "lock"


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent`, which is made if it is missing, to write into; remove it again.

    What a process that was killed has left of such folders is removed first: a lock, which ends
    with its process, tells those that are still written to.

    Raises
    ------
    Fault
        If the disk is full or `parent` cannot be written to.
    """
    with explained(parent):
        made = [path for path in (parent, *parent.parents) if not path.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(parent)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=TEMPORARY))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with explained(parent):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):  # not empty: it holds the export
            for path in made:
                path.rmdir()


def publish(written: Path, place: Path) -> None:
    """Move a file or folder that is whole to its place, where an earlier one may be."""
    with explained(place.parent):
        if written.is_dir():
            os.sync()  # once: for a million files one by one it would take hours
        else:
            fsync(written)
        if written.is_dir() and place.is_dir() and not place.is_symlink():
            remove_folder(place)
        written.replace(place)
        fsync(place.parent)


def _remove_left_behind(parent: Path) -> None:
    for lock in parent.glob(f"{TEMPORARY}*/{_LOCK}"):
        with suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)
