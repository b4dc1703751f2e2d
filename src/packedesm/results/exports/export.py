"""Export finished results: choose, name, write, check, put into place."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packedesm.errors import (
    Fault,
    UserError,
    first_line,
    listed,
    plural,
    printable,
    quote,
    quote_path,
)
from packedesm.files import combined, reading
from packedesm.outputs import Array
from packedesm.paths import Paths
from packedesm.results.exports.formats import FORMATS, POSITION, Format, Writer
from packedesm.results.exports.keys import accession, biotrainer_hash, first_rows, unique_keys
from packedesm.results.exports.place import (
    deferred_signals,
    publish,
    remove_left_behind,
    sync,
    workspace,
)
from packedesm.results.exports.record import (
    id_table,
    is_recorded,
    recorded,
    write_export_record,
)
from packedesm.results.exports.sequences import fasta_files, sequences
from packedesm.results.exports.source import Source
from packedesm.results.index_file import index_columns
from packedesm.results.new_file import check_new_file, expect_free
from packedesm.results.reader import Results

logger = logging.getLogger(__name__)

_CHECKED = 8  # records that are read back
_TABLE = "ids.tsv"
_CHANGED = {"upper_cased", "stop_removed", "stop_replaced", "j_replaced"}  # flags of the index
_ID_COLUMNS = ("row", "id", "key")


@dataclass(frozen=True)
class Asked:
    """What an export is asked for.

    Parameters
    ----------
    format
        A name from `FORMATS`.
    keys
        What records are called: one of the format's `keys`, None for the first of them.
    arrays
        Names of arrays; none for what the format takes by itself.
    fasta
        Where the sequences are read, if they are needed and lie elsewhere now.
    """

    format: str
    keys: str | None = None
    arrays: tuple[str, ...] = ()
    fasta: tuple[Path, ...] = ()


def export(results: Results, asked: Asked, place: Path | None = None) -> list[Path]:
    """Write an export and return its files; none of them is there before all are whole.

    An id that the format cannot hold is replaced, see `packedesm.results.exports.keys`; then
    ``NAME.ids.tsv`` beside the file or folder ``NAME`` tells of each row that is called
    otherwise than its id.

    Parameters
    ----------
    results
        What is exported.
    asked
        How.
    place
        The file, of one with a suffix such as ``.h5``; or the folder of the files. None for the
        folder ``exports`` of the results, where a record says what was exported, see
        `is_exported`.

    Raises
    ------
    UserError
        If the format or the arrays are not there, something is not installed, or `place` is taken.
    Fault
        If the disk is full or cannot be written to, or an array is not as the run wrote it.
    """
    format = FORMATS[asked.format]
    writer = format.writer()
    arrays = format.choose(results.arrays, [_name(results, name) for name in asked.arrays])
    files = writer.files(arrays)
    targets = _targets(results, format, list(files), place)
    source = _source(results, format, asked, arrays)
    with workspace(next(iter(targets.values())).parent) as folder:
        for name, inside in files.items():
            part, path = source.of(inside), folder / name
            with _unchanged(results, inside):
                writer.write(path, part)
            _check(writer, path, part)
        moves = {folder / name: target for name, target in targets.items()}
        if _write_table(folder / _TABLE, source):  # last: no table lies there without its export
            for table in map(id_table, targets.values()):
                moves[Path(shutil.copyfile(folder / _TABLE, folder / table.name))] = table
        sync(moves)
        with deferred_signals():
            _put(folder, moves, _places(targets.values()), results, asked if not place else None)
    return list(targets.values())


def export_missing(results: Results, names: Iterable[str]) -> list[str]:
    """Write those exports, each as its format makes it by itself, that are not there yet.

    Returns the names of the formats; raises as `export`.
    """
    missing = [name for name in names if not is_exported(results, name)]
    for name in missing:  # before any is written
        FORMATS[name].choose(results.arrays)
        FORMATS[name].expect_installed()
    for name in missing:
        for path in export(results, Asked(name)):
            logger.info("exported %s", path)
    return missing


def is_exported(results: Results, name: str) -> bool:
    """Tell whether the folder ``exports`` has an export of these very results in a format.

    As it is made if nobody asks for special keys or arrays.
    """
    return is_recorded(Paths(results.path), name, _made(results, Asked(name)))


def _targets(
    results: Results, format: Format, files: Sequence[str], place: Path | None
) -> dict[str, Path]:
    """Return where each file goes; UserError if that cannot be."""
    paths = Paths(results.path)
    root = paths.exports
    if place is None:
        if root.is_symlink() or (root.exists() and not root.is_dir()):
            raise UserError(f"{root}: is a link or a file; move it away")
        remove_left_behind(root)
        targets = {name: root / name for name in files}
        _expect_own(_places(targets.values()), recorded(paths, format.name))
        return targets
    as_file = bool(place.suffix) and not place.is_dir()
    targets = {name: place if as_file else place / name for name in files}
    remove_left_behind(place.parent if as_file else place)
    for path in _places(targets.values()):
        check_new_file(path, results.path, make_folder=True)
    if as_file and (format.several or len(files) > 1):
        one = "" if format.several else ", or one array with --arrays"
        raise UserError(f"{place}: this export is {', '.join(files)}; name a folder with -o{one}")
    return targets


def _places(targets: Iterable[Path]) -> list[Path]:
    """Return the places of an export: those of its files, and of their tables of ids."""
    return [place for target in targets for place in (target, id_table(target))]


def _expect_own(places: Iterable[Path], own: Collection[Path]) -> None:
    """Raise UserError if something is there that is not of an earlier export."""
    for path in places:
        if path not in own and os.path.lexists(path):
            told = quote_path(path)
            raise UserError(f"{told}: is there already, and no record names it; move it away")


def _name(results: Results, asked: str) -> str:
    """Return the name of an array that is asked for, ``mean`` of the last layer's."""
    try:
        return results.name(asked)
    except UserError:
        return asked


def _source(results: Results, format: Format, asked: Asked, arrays: Sequence[Array]) -> Source:
    choice = asked.keys or format.keys[0]
    if choice not in format.keys:
        raise UserError(
            f"--keys: format {format.name} knows {', '.join(format.keys)}, not {quote(choice)}"
        )
    fasta = asked.fasta
    if format.sequences or choice == "biotrainer":
        fasta = fasta_files(results, fasta)
    if choice == "biotrainer":
        keys = [biotrainer_hash(sequence) for sequence in sequences(results, fasta)]
        _tell_changed(results)
        return Source(results, tuple(arrays), keys, first_rows(keys), choice, fasta)
    rows = range(len(results))
    if choice == POSITION or format.rule is None:
        keys = list(map(str, rows)) if choice == POSITION else results.ids
        return Source(results, tuple(arrays), keys, rows, choice, fasta)
    wanted = results.ids if choice == "id" else [accession(name) for name in results.ids]
    keys, replaced = unique_keys(wanted, format.rule)
    if replaced:
        examples = (f"{quote(wanted[row])} is {quote(keys[row])}" for row in replaced)
        logger.warning(
            "%s that format %s cannot hold, or that stand there twice, are replaced (%s); a table "
            "of ids beside the export tells which",
            plural(len(replaced), f"{choice}"),
            *(format.name, listed(examples, len(replaced))),
        )
    return Source(results, tuple(arrays), keys, rows, choice, fasta)


def _tell_changed(results: Results) -> None:
    """Warn of records whose key is not that of the letters in their file."""
    flags = index_columns(Paths(results.path).index, ["flags"])["flags"].to_pylist()
    changed = sum(not _CHANGED.isdisjoint(text.split(",")) for text in flags)
    if changed:
        logger.warning(
            "%s with a sequence that was changed when it was read (%s): the key is that of the "
            "sequence as it was embedded",
            *(plural(changed, "record"), ", ".join(sorted(_CHANGED))),
        )


def _unchanged(results: Results, arrays: Sequence[Array]) -> ExitStack:
    """Return what raises Damaged at its end if index or arrays are not as the run wrote them."""
    stack = ExitStack()
    paths, digests = Paths(results.path), results.manifest.get("sha256", {})
    for path in (paths.index, *(paths.array(array.name) for array in arrays)):
        if path.name in digests:
            stack.enter_context(reading(path, sha256=digests[path.name]))
    return stack


def _check(writer: Writer, path: Path, source: Source) -> None:
    """Read some rows back: the first, the last, and some between."""
    rows = source.rows
    drawn = random.Random(0).sample(rows, min(_CHECKED, len(rows)))
    few = sorted({rows[0], rows[-1], *drawn})
    try:
        writer.check(path, source, few)
    except ValueError as error:
        raise Fault(
            f"{path.name}: what was written does not read back as it should "
            f"({first_line(error)}); nothing is kept; check the disk, and run again"
        ) from error


def _write_table(path: Path, source: Source) -> bool:
    """Write which row is called what, if one is not called by its id; tell whether one is."""
    ids, keys = source.ids, source.keys
    other = [row for row in range(len(ids)) if ids[row] != keys[row]]
    if other:
        with path.open("w", encoding="utf-8") as handle:
            handle.write("\t".join(_ID_COLUMNS) + "\n")
            for row in other:
                handle.write(f"{row}\t{printable(ids[row])}\t{printable(keys[row])}\n")
    return bool(other)


def _put(
    folder: Path,
    moves: dict[Path, Path],
    places: Sequence[Path],
    results: Results,
    recording: Asked | None,
) -> None:
    """Move the files of an export, and their tables of ids, to their places.

    Nothing is replaced but what the record says is of an earlier export in this format.

    Parameters
    ----------
    folder
        The workspace.
    moves
        What goes where.
    places
        All places that the export may have, see `_places`.
    results
        What is exported.
    recording
        What the record tells of it; None where none is kept.
    """
    if recording is None:
        for path in places:
            expect_free(path)
        publish(folder, moves, ())
        return
    paths, name = Paths(results.path), recording.format
    own = recorded(paths, name)
    _expect_own(places, own)
    write_export_record(paths, name, moves.values(), None)
    publish(folder, moves, [path for path in places if path in own])
    write_export_record(paths, name, moves.values(), _made(results, recording))


def _made(results: Results, asked: Asked) -> dict[str, Any]:
    """Return what tells an export from another one in the same format."""
    keys = asked.keys or FORMATS[asked.format].keys[0]
    return {"keys": keys, "arrays": list(asked.arrays), "results": _digest(results)}


def _digest(results: Results) -> str:
    """Return what tells these results from others, whatever report there is of them."""
    manifest, paths = results.manifest, Paths(results.path)
    if "sha256" not in manifest:
        return str(manifest["written"])
    exported = [path.name for path in (*paths.arrays(results.arrays), paths.index)]
    return combined([manifest["sha256"][name] for name in exported])
