"""What the folder ``exports`` of finished results holds: a record for each format."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from packedesm.errors import Damaged
from packedesm.files import read_record, write_record
from packedesm.paths import Paths

_UNFINISHED = "unfinished"


def write_export_record(
    paths: Paths, name: str, written: Iterable[Path], made: dict[str, Any] | None
) -> None:
    """Write the record of an export in the format `name`: its files, and how they were `made`.

    `made` is None before they are in their places: then they are of this export, whichever of
    them are there, and the export is not. Files that an earlier record names stay in it.
    """
    files = sorted({path.name for path in (*written, *recorded(paths, name))})
    how = {_UNFINISHED: True} if made is None else made
    write_record(paths.export(name), {"format": name, "files": files, **how})


def recorded(paths: Paths, name: str) -> set[Path]:
    """Return those files of exports in a format, by its record, that are there."""
    names = (Path(file).name for file in _read(paths.export(name)).get("files", []))
    return {path for path in map(paths.exports.joinpath, names) if os.path.lexists(path)}


def is_recorded(paths: Paths, name: str, made: dict[str, Any]) -> bool:
    """Tell whether there is an export in a format, all its files too, that was `made` like this."""
    record = _read(paths.export(name))
    if record.get(_UNFINISHED):
        return False
    there = all((paths.exports / file).exists() for file in record.get("files", ["?"]))
    return there and made.items() <= record.items()


def outdated_exports(paths: Paths, formats: Sequence[str]) -> list[Path]:
    """Return the records of exports of which a file is gone."""
    records = {name: paths.export(name) for name in formats if paths.export(name).exists()}
    return [path for name, path in records.items() if not is_recorded(paths, name, {})]


def remove_exports(paths: Paths) -> None:
    """Remove every export that has a record; what others have put beside them stays."""
    if not paths.exports.is_dir() or paths.exports.is_symlink():
        return
    for path in sorted(paths.exports.glob("*.json")):
        if (record := _read(path)).get("format") == path.stem:
            for name in record["files"]:
                _remove(paths.exports / Path(name).name)
            path.unlink()
    with suppress(OSError):  # not empty
        paths.exports.rmdir()


def id_table(export: Path) -> Path:
    """Return where the table of ids of an export lies: ``x.h5.ids.tsv`` of ``x.h5``."""
    return export.with_name(f"{export.name}.ids.tsv")


def _read(path: Path) -> dict[str, Any]:
    with suppress(FileNotFoundError, Damaged):
        return read_record(path)
    return {}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
