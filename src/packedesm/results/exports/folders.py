"""Exports that are folders of very many files: told of before they are written."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from packedesm.errors import Fault, plural

logger = logging.getLogger(__name__)

_MANY = 100_000  # files: so many are worth a warning


def tell_size(folder: Path, files: int, size: int) -> None:
    """Say how many files are to be written, and refuse what the disk cannot hold.

    Parameters
    ----------
    folder
        Where they are to lie: in a `packedesm.results.exports.place.workspace`.
    files
        Their number.
    size
        Bytes of them all.

    Raises
    ------
    Fault
        If the file system has less room, or fewer free inodes.
    """
    disk, place = os.statvfs(folder), folder.parent.parent
    size += files * disk.f_frsize // 2  # the last block of a file is half full
    room = disk.f_bavail * disk.f_frsize
    told = f"{plural(files, 'file')}, about {size / 1e9:.2g} GB"
    if size > room:
        raise Fault(
            f"{place}: {told} are to be written, and there is room for {room / 1e9:.2g} GB; "
            "free some, or choose another folder with -o"
        )
    if disk.f_files and files > disk.f_favail:  # some file systems count no inodes
        raise Fault(
            f"{place}: {told} are to be written, and the file system takes "
            f"{disk.f_favail:,} more; choose another folder with -o"
        )
    say = logger.warning if files >= _MANY else logger.info
    say("to be written: %s", told)
