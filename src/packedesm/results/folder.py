"""A folder of results: new, unfinished from its first byte on, or finished; and who works in it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from packedesm.errors import Damaged, Fault, UserError, quote
from packedesm.files import TEMPORARY, explained, file_digest, read_record, remove_folder
from packedesm.paths import WORK, Paths
from packedesm.results.exports.record import remove_exports
from packedesm.results.request import Request

logger = logging.getLogger(__name__)

_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}


@contextmanager
def working_in(paths: Paths) -> Iterator[None]:
    """Let this process alone work in a folder of results, which is made if it is missing.

    The lock is the operating system's and ends with the process, however that ends. If the block
    fails before anything was worth keeping, what this process made is removed again; nothing that
    is not ours ever is.

    Raises
    ------
    UserError
        As `refuse_foreign`.
    Fault
        If another process works in it, or it cannot be written to.
    """
    refuse_foreign(paths)
    made = [path for path in (paths.root, *paths.root.parents) if not path.exists()]
    with explained(paths.root):
        lock = _locked(paths)
    fresh = not paths.request.exists()
    for folder in (paths.root, paths.work):
        for unfinished in folder.glob(f"{TEMPORARY}*"):  # of attempts that were killed
            _remove(unfinished)
    try:
        yield
    except BaseException:
        if fresh and not paths.kept():
            _leave_nothing(paths, made)
        raise
    finally:
        if _only_claimed(paths) and (paths.manifest.exists() or not paths.kept()):
            shutil.rmtree(paths.work, ignore_errors=True)
        os.close(lock)


def _locked(paths: Paths) -> int:
    """Make the folder of work and lock it; return the open lock, which closing releases.

    Raises
    ------
    Fault
        If another process holds the lock.
    """
    while True:
        paths.work.mkdir(parents=True, exist_ok=True)
        # Another process that has nothing to keep takes the folder away, the lock with it: what is
        # locked must be what others will find.
        with suppress(FileNotFoundError):
            lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise _taken(paths) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), paths.lock.stat()):
                    return lock
            os.close(lock)


def refuse_foreign(paths: Paths) -> None:
    """Raise UserError if the folder cannot be ours: it is a file, or holds what is not of a run.

    While another process works in it what is there may look like anything: then Fault says that.
    """
    try:
        _refuse_foreign(paths)
    except UserError:
        if _is_locked(paths):
            raise _taken(paths) from None
        _refuse_foreign(paths)  # that process may just have ended


def _taken(paths: Paths) -> Fault:
    return Fault(
        f"{paths.root}: another packedesm works in this folder; wait for it, or give another one "
        "with -o"
    )


def _is_locked(paths: Paths) -> bool:
    with suppress(OSError):
        lock = os.open(paths.lock, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
    return False


def _refuse_foreign(paths: Paths) -> None:
    _refuse_links(paths)
    root = paths.root
    if not _only_claimed(paths) and not _is_ours(paths):
        raise UserError(
            f"{root}: holds an unfinished run that is not of this command; give a new folder with "
            "-o"
        )
    foreign = sorted(_names(paths) - _ours(paths))
    if foreign:
        raise UserError(
            f"{root}: is there and holds what is not of a run ({quote(foreign[0])}); give a new "
            "folder with -o"
        )


def refuse_foreign_sample(paths: Paths) -> None:
    """Raise UserError if the folder of a sample holds what the workflow did not make."""
    _refuse_links(paths)
    if _is_ours(paths) or _is_locked(paths):
        raise UserError(
            f"{paths.root}: holds a run of the command `packedesm embed`; set `results` to another "
            "folder"
        )
    known = {path.name for path in _made_in(paths)} if _is_the_workflows(paths) else set()
    inside = {path.name for path in paths.work.glob("*")} - paths.work_names()
    foreign = _finished_names(_names(paths) - known - {WORK})
    if foreign := [*foreign, *(f"{WORK}/{name}" for name in _finished_names(inside))]:
        raise UserError(
            f"{paths.root}: holds what this workflow did not make ({quote(foreign[0])}); set "
            "`results` to another folder, or move it away"
        )


@contextmanager
def one_at_a_time(paths: Paths, step: str) -> Iterator[None]:
    """Let one process alone do a step of a sample; who comes later waits.

    A Snakemake that was killed leaves jobs behind, and the next one starts the same step: that must
    not end before the one that was left behind, whose files would stand.
    """
    path = paths.locks / step
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        logger.warning("%s: another process is at this step; waiting for it", path)
        lock.acquire()
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def finished_request(paths: Paths) -> Request | None:
    """Return the request of finished results that are whole; None if the folder is not finished.

    The files of the report are not looked at: see `packedesm.results.redrawing`.

    Raises
    ------
    UserError
        If the results are not those of the command, or a file is not as it was written.
    """
    if not paths.manifest.exists():
        return None
    try:
        content = read_record(paths.manifest)
        request = Request.from_json(content["request"])
        digests = {str(name): str(digest) for name, digest in content["sha256"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, Damaged):
        raise UserError(
            f"{paths.manifest}: is damaged or not of this command; give a new folder with -o"
        ) from None
    for path, digest in ((paths.root / name, digest) for name, digest in digests.items()):
        if path in paths.drawn():
            continue
        if not path.is_file() or file_digest(path) != digest:
            raise UserError(
                f"{path}: is missing or damaged; give a new folder with -o, or --force to start "
                "over in this one"
            )
    return request


def at_rest(paths: Paths) -> bool:
    """Tell whether nothing of a run's work is in the folder that this process could clear away."""
    left = any(paths.root.glob(f"{TEMPORARY}*")) and os.access(paths.root, os.W_OK)
    return not (left or paths.work.exists())


def adopt_request(
    paths: Paths, config: Mapping[str, Any], weights: Sequence[Path], weights_sha256: str
) -> Request:
    """Write the request of a run before anything else, or go on with the one that is there.

    Raises
    ------
    UserError
        If another request was stopped in this folder; nothing is touched.
    """
    before = Request.read(paths.request)
    request = Request.of(config, weights, before, weights_sha256=weights_sha256)
    if before is not None and (changes := request.differences(before, finished=False)):
        what = "; ".join(changes)
        if paths.kept():
            raise UserError(
                f"{paths.root}: holds an unfinished run of another request ({what}); give a new "
                "folder with -o, the same request, or --force to start over in this one"
            )
        logger.info("nothing is kept of an earlier run of another request: %s", what)
        start_over(paths)
    request.write(paths.request)
    return request


def start_over(paths: Paths) -> None:
    """Remove what a run has left or finished in the folder, after saying what that is.

    Last what shows that the folder is ours: who is stopped on the way can start over again.
    """
    ours = sorted(_ours(paths) - ({WORK} if _only_claimed(paths) else set()))
    if ours:
        logger.warning("%s: starting over, removing %s", paths.root, ", ".join(ours))
    last = (paths.request, paths.manifest)
    remove_exports(paths)
    for path in [*paths.results(), *paths.work.glob("*")]:
        if path not in (paths.lock, *last):
            _remove(path)
    for path in last:
        _remove(path)


def clean_up(paths: Paths) -> None:
    """Remove what only the steps of a run read; its manifest must stand."""
    if paths.manifest.exists() and paths.work.exists():
        _remove_work(paths)


def _refuse_links(paths: Paths) -> None:
    """Raise UserError if something is a link, a folder or a file where it may not be."""
    root, work = paths.root, paths.work
    if root.is_symlink() and os.path.realpath(root) == str(root):
        raise UserError(f"{root}: is a link to itself; choose another folder for the results")
    if root.is_symlink() and not root.exists():
        raise UserError(f"{root}: is a link to nothing; choose another folder for the results")
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there}: is a file, not a folder; choose another folder for the results")
    folders = (work, paths.exports)
    odd = [path for path in folders if path.is_symlink() or (path.exists() and not path.is_dir())]
    files = [*paths.results(), paths.lock, paths.request]
    odd += [path for path in files if path.is_symlink() or path.is_dir()]
    if odd:
        raise UserError(
            f"{odd[0]}: is a link or a folder, not of a run; choose another folder for the results"
        )


def _remove_work(paths: Paths) -> None:
    """Remove the folder of work, in one step, so that half of it is never taken for a run."""
    with suppress(OSError):
        remove_folder(paths.work)


def _remove(path: Path) -> None:
    """Remove a file or a folder; of a link the link alone, wherever it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _only_claimed(paths: Paths) -> bool:
    """Tell whether at most a process began to work here that has not written its request."""
    names = {path.name for path in paths.work.glob("*")}
    return {*_finished_names(names)} <= {paths.lock.name}


def _is_ours(paths: Paths) -> bool:
    """Tell whether the command worked here: by its request, or by its manifest."""
    return paths.request.exists() or isinstance(_manifest(paths).get("request"), dict)


def _is_the_workflows(paths: Paths) -> bool:
    """Tell whether the workflow worked here: by its folder of work or its manifest."""
    return not _is_ours(paths) and (paths.work.exists() or "request" in _manifest(paths))


def _manifest(paths: Paths) -> dict[str, Any]:
    try:
        return read_record(paths.manifest)
    except PermissionError:  # what may not be read is not another's for that
        raise
    except (OSError, ValueError, Damaged):
        return {}


def _made_in(paths: Paths) -> list[Path]:
    """Return what finished results may hold: their files, and the folder of exports."""
    return [*paths.results(), paths.exports]


def _names(paths: Paths) -> set[str]:
    """Return the names in a folder, without those that systems put into every folder."""
    names = {path.name for path in paths.root.glob("*")}
    return {name for name in names - _SYSTEMS if not name.startswith(".nfs")}


def _finished_names(names: Iterable[str]) -> list[str]:
    """Return, sorted, the names that are not of files that are still being written."""
    return sorted(name for name in names if not name.startswith(TEMPORARY))


def _ours(paths: Paths) -> set[str]:
    """Return the names in the folder that are those of a run, if it is one of ours at all."""
    there = {path.name for path in paths.root.glob("*")}
    if not _is_ours(paths):
        return there & {WORK}
    known = {path.name for path in _made_in(paths)} | {WORK}
    return {name for name in there if name in known or name.startswith(TEMPORARY)}


def _leave_nothing(paths: Paths, made: Sequence[Path]) -> None:
    """Remove the folder of work, and those around it that were made and are empty."""
    _remove_work(paths)
    with suppress(OSError):  # not empty: files that appeared meanwhile stay
        for folder in made:
            folder.rmdir()
