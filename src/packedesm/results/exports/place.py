"""Where an export is written: beside its place, and renamed to it when it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from packedesm.files import TEMPORARY, explained, fsync, identities, read_json, write_json

_LOCK = "lock"
_MOVED = "moved.json"  # what is being moved into place; it is gone when all is there
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent`, which is made if it is missing, to write into; remove it again.

    What a process that was killed has left of such folders is removed first: a lock, which ends
    with its process, tells those that are still written to. Of files that were being moved to
    their places, and not all are there, those that are go too.

    Raises
    ------
    Fault
        If the disk is full or `parent` cannot be written to.
    """
    with explained(parent):
        made = [path for path in (parent, *parent.parents) if not path.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        remove_left_behind(parent)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=TEMPORARY))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        with explained(parent):
            yield folder
    finally:
        _withdraw(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):  # not empty: it holds the export
            for path in made:
                path.rmdir()


def sync(written: Iterable[Path]) -> None:
    """Wait until files and folders are on the disk."""
    paths = list(written)
    with explained(paths[0].parent):
        if any(path.is_dir() for path in paths):
            os.sync()  # once: for a million files one by one it would take hours
        else:
            for path in paths:
                fsync(path)


def publish(folder: Path, moves: Mapping[Path, Path], earlier: Iterable[Path]) -> None:
    """Move files and folders that are whole to their places, all of them or none.

    Parameters
    ----------
    folder
        The workspace in which they were written.
    moves
        Where each goes, in the folder of the workspace; in this order.
    earlier
        What lies there of an earlier export. It is moved away before.
    """
    parent = folder.parent
    with explained(parent):
        written = identities(moves)
        places = [place.name for place in moves.values()]
        write_json(folder / _MOVED, dict(zip(places, written, strict=True)))
        for number, path in enumerate(earlier):
            path.rename(folder / f"earlier-{number}")
        for source, place in moves.items():
            source.replace(place)
        fsync(parent)
        (folder / _MOVED).unlink()


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let a short block run to its end; a signal that comes meanwhile is heeded then.

    Outside the main thread, where Python delivers no signal, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heeded = {n: known for n, known in before.items() if known not in (signal.SIG_IGN, None)}
    try:
        for number in heeded:
            signal.signal(number, lambda number, _frame: received.append(number))
        yield
    finally:
        for heard, known in heeded.items():
            signal.signal(heard, known)
        for first in received[:1]:
            signal.raise_signal(first)


def remove_left_behind(parent: Path) -> None:
    """Remove from a folder what exports that were killed have left there."""
    for lock in parent.glob(f"{TEMPORARY}*/{_LOCK}"):
        with suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _withdraw(lock.parent)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(handle)


def _withdraw(folder: Path) -> None:
    """Move back into a workspace what was moved to its place, where not all was."""
    with suppress(OSError, ValueError):
        for number, (name, written) in enumerate(read_json(folder / _MOVED).items()):
            path = folder.parent / Path(name).name
            with suppress(FileNotFoundError):  # not moved yet
                if not path.is_symlink() and list(identities([path])[0]) == written:
                    path.rename(folder / f"withdrawn-{number}")
