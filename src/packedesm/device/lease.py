"""Lease a GPU, so that two local jobs do not share one while another is free."""

from __future__ import annotations

import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from packedesm.device.nvml import Gpu
from packedesm.errors import Fault, plural

logger = logging.getLogger(__name__)


class Unusable(Exception):
    """No GPU can be used; the text says of each why."""


def lease_folder() -> Path:
    """Return the folder of this user's leases, made if it is missing.

    It lies in the folder that the system gives the user while he is logged in, whether or not this
    process was told of it, so that jobs and shells find the same one; else in the temporary folder.

    Raises
    ------
    Fault
        If what is there is a link, or another user's, or others may write to it; or if it cannot
        be made.
    """
    user = os.getuid()
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    given = runtime.is_absolute() and _is_private(runtime)  # else it is another in each folder
    try:
        folder = (runtime if given else Path(tempfile.gettempdir())) / f"packedesm-gpus-{user}"
    except FileNotFoundError as error:
        raise _no_place("the temporary folder", error) from None
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # what it is, is seen below
    except OSError as error:
        raise _no_place(folder, error) from None
    if not _is_private(folder):
        raise Fault(
            f"{folder}: is a link, or not a folder that you alone may write to; remove it, or set "
            "TMPDIR to a folder of your own"
        )
    return folder


def _no_place(where: object, error: OSError) -> Fault:
    return Fault(
        f"{where}: cannot hold the lease of a GPU ({error.strerror}); set TMPDIR to a folder of "
        "your own, and unset XDG_RUNTIME_DIR if the lease lies there"
    )


def _is_private(folder: Path) -> bool:
    """Tell whether it is a folder, no link to one, that this user owns and alone may write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    own = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and stat.S_ISDIR(found.st_mode)


def freest_first(gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return `gpus`, first those on which nothing runs, and of them that with most free memory.

    One whose memory NVML cannot read comes last. Those that are alike stay in their order.
    """
    return sorted(
        gpus, key=lambda gpu: (gpu.free_bytes is None, gpu.processes or 0, -(gpu.free_bytes or 0))
    )


@contextmanager
def lease(
    gpus: Sequence[Gpu],
    folder: Path | None = None,
    poll_seconds: float = 1.0,
    *,
    trial: Callable[[Gpu], str | None] = lambda _gpu: None,
) -> Iterator[Gpu]:
    """Hold one of `gpus` for this process alone; wait while other jobs hold them all.

    The lease is an operating system lock on a file named by the GPU's UUID: when its holder dies,
    however it dies, the lock is gone. It binds packedesm jobs of one user on one machine; between
    users and machines the cluster's scheduler decides.

    Parameters
    ----------
    gpus
        At least one GPU, the one to take first at the beginning.
    folder
        Where the lock files lie; default: `lease_folder`.
    poll_seconds
        How often the locks are tried while all are held.
    trial
        Tells why a GPU, which is held meanwhile, cannot be used; None if it can.

    Raises
    ------
    Unusable
        If none of them can be used.
    Fault
        If there is no place for leases.
    """
    folder = folder or lease_folder()
    refused: dict[Gpu, str] = {}
    waiting = False
    while True:
        for gpu in gpus:
            if gpu in refused:
                continue
            lock = FileLock(folder / f"{re.sub('[^A-Za-z0-9-]', '_', gpu.uuid)}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            except OSError as error:  # a full disk, or one without locks
                raise _no_place(lock.lock_file, error) from None
            try:
                reason = trial(gpu)
                if reason is None:
                    yield gpu
                    return
            finally:
                lock.release()
            logger.warning("%s cannot be used: %s", gpu, reason)
            refused[gpu] = reason
        if len(refused) == len(gpus):
            raise Unusable(_each(refused))
        if not waiting:
            logger.info("waiting: other jobs hold every GPU (%s)", plural(len(gpus), "GPU"))
            waiting = True
        time.sleep(poll_seconds)


def _each(refused: dict[Gpu, str]) -> str:
    """Return who cannot be used and why; what all have in common is said once."""
    named: dict[str, list[str]] = {}
    for gpu, reason in refused.items():
        named.setdefault(reason, []).append(str(gpu))
    return "; ".join(f"{', '.join(gpus)}: {reason}" for reason, gpus in named.items())
