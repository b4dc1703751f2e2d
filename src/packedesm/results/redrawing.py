"""The report of finished results, drawn again from them: when, and how that is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packedesm.errors import Damaged, UserError
from packedesm.files import file_digest, read_record, write_record
from packedesm.options import NONE, ReportOptions
from packedesm.paths import Paths
from packedesm.results.manifest import configured, reported

# What reports showed before there was a choice.
_BEFORE = {"map": "pca", "annotations": NONE, "column": NONE}


def why_redraw(paths: Paths, options: ReportOptions) -> list[str]:
    """Return in words why the report of finished results is not that which is asked for.

    Nothing if it is, or if these are no finished results: others tell of that. A table that is not
    there any more is taken for the one that was.
    """
    try:
        manifest = read_record(paths.manifest)
        digests = dict(manifest["sha256"])
        was = dict(_reported(manifest)["options"])
        read = _reported(manifest)["table"]
    except (KeyError, TypeError, AttributeError, ValueError, OSError, RecursionError, Damaged):
        return []
    now, table = options.as_config(), options.table
    found = [f"{key} was {was.get(key)!r}, is {now[key]!r}" for key in now if was[key] != now[key]]
    if was["annotations"] == options.annotations and read and table and table.is_file():
        found += [] if file_digest(table) == read else [f"{table} is another one"]
    for path in paths.drawn():
        if not path.is_file() or file_digest(path) != digests.get(path.name):
            found.append(f"{path.name} is missing or was changed")
    return found


def kept_of_steps(paths: Paths) -> tuple[dict[str, str], dict[str, float]]:
    """Return what finished results keep for another report of them.

    Returns
    -------
    sha256, seconds
        The digests of the results by name; and what the steps took, by name.

    Raises
    ------
    UserError
        If an early version wrote them, which kept less.
    """
    manifest = read_record(paths.manifest)
    seconds = _reported(manifest)["seconds"]
    if seconds is None:
        raise UserError(
            f"{paths.root}: an earlier packedesm wrote these results, without what a new report "
            "is drawn from; ask for the report as it was, or give a new folder with -o"
        )
    return manifest["sha256"], seconds


def record_redrawn(paths: Paths, config: Mapping[str, Any], reporting: Mapping[str, Any]) -> None:
    """Let the manifest of finished results say that there is another report, and nothing else.

    Parameters
    ----------
    config
        The resolved configuration, of which only the part of the report may be another one.
    reporting
        What was recorded of the report.
    """
    manifest = read_record(paths.manifest)
    manifest |= {"sha256": manifest["sha256"] | reporting["sha256"], "report": reported(reporting)}
    manifest |= configured({**manifest["config"], "report": config["report"]})
    write_record(paths.manifest, manifest)


def _reported(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a manifest says of the report, also one of before it said anything."""
    if "report" in manifest:
        return manifest["report"]
    options = ReportOptions.of({**_BEFORE, **manifest["config"]}).as_config()
    return {"options": options, "table": None, "seconds": None}
