"""Where a command may write one file that it was asked for with -o."""

from __future__ import annotations

from pathlib import Path

from packedesm.errors import UserError, quote_path
from packedesm.paths import Paths


def check_new_file(output: Path, *results: Path) -> None:
    """Raise UserError unless a file can be made there that takes no other's place.

    Parameters
    ----------
    output
        The file: its folder is there, and is not one of results. Nothing is there under its name,
        no device and no pipe either.
    results
        Folders of results that the command reads.
    """
    told = quote_path(output)
    try:
        if output.is_dir():
            raise UserError(f"{told}: is a folder; give a file with -o")
        if output.exists() or output.is_symlink():
            raise UserError(f"{told}: is there already; remove it, or name another with -o")
        if not output.parent.is_dir():
            raise UserError(
                f"{quote_path(output.parent)}: is no folder; make it, or name another with -o"
            )
        folder = output.parent.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a circle of links
        if isinstance(error, PermissionError):
            raise
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{told}: cannot be a file ({why}); name another with -o") from None
    inside = any(folder.is_relative_to(path.resolve()) for path in results)
    if inside or any(map(_holds_results, (folder, *folder.parents))):
        raise UserError(f"{told}: lies in a folder of results; give another place with -o")


def _holds_results(folder: Path) -> bool:
    paths = Paths(folder)
    return paths.manifest.exists() and paths.index.exists()
