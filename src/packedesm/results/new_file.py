"""Where a command may write what it was asked for with -o."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packedesm.errors import UserError, quote_path
from packedesm.paths import WORK, Paths


def check_new_file(output: Path, *results: Path, make_folder: bool = False) -> None:
    """Raise UserError unless a file can be made there that takes no other's place.

    Parameters
    ----------
    output
        The file, or a folder of files that are written together. It lies in no folder of results,
        finished or not: no run would know it for its own. Nothing is there under its name, no
        device and no pipe either.
    results
        Folders of results that the command reads.
    make_folder
        Whether the folder that it shall lie in is made if it is missing.
    """
    told = quote_path(output)
    with _possible(told):
        folder = output.parent.resolve()
        within = any(folder.is_relative_to(path.resolve()) for path in results)
        if within or lies_in_results(output):
            raise UserError(f"{told}: lies in a folder of results; give another place with -o")
        expect_free(output)
        _check_folder(output.parent, make_folder)


def _check_folder(folder: Path, make_folder: bool) -> None:
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if there.exists() and not there.is_dir():
        raise UserError(f"{quote_path(there)}: is a file, not a folder; name another with -o")
    if not (folder.is_dir() or (make_folder and there.is_dir())):
        raise UserError(f"{quote_path(folder)}: is no folder; make it, or name another with -o")


def lies_in_results(path: Path) -> bool:
    """Tell whether one of the folders around a path holds results, finished or not."""
    folder = path.parent.resolve()
    return any(map(_is_of_results, (folder, *folder.parents)))


def expect_free(path: Path) -> None:
    """Raise UserError if something is there."""
    if path.is_dir():  # whose content might be missed
        raise UserError(f"{quote_path(path)}: is there already, a folder; name another with -o")
    if os.path.lexists(path):
        raise UserError(f"{quote_path(path)}: is there already; remove it, or name another with -o")


@contextmanager
def _possible(told: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a circle of links
        if isinstance(error, PermissionError):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{told}: cannot be a file ({why}); name another with -o") from None


def _is_of_results(folder: Path) -> bool:
    """Tell whether a folder holds results, or the work of a run that shall have some.

    The workflow keeps what its samples share, the record of the checkpoint, in a folder of work
    around them. That is one; what lies beside it is not.
    """
    paths = Paths(folder)
    # Of the workflow's samples the last two are there before anything is recorded.
    begun = (paths.lock, paths.request, paths.sharding, paths.locks, paths.shard_fasta(0).parent)
    if any(path.exists() for path in begun):
        return True
    shared = folder.name == WORK and Paths(folder.parent).checkpoint.exists()
    return shared or (paths.manifest.exists() and paths.index.exists())
