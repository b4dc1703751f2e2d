"""Find the GPUs, and lease one so that two local jobs do not share it while another is free."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml
from filelock import FileLock, Timeout

from packedesm.errors import Fault, plural

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    uuid: str
    name: str
    memory_bytes: int


@contextmanager
def nvml() -> Iterator[None]:
    """Open NVML; raises `pynvml.NVMLError` where there is no NVIDIA driver."""
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def visible_gpus() -> tuple[list[Gpu], str]:
    """Return the GPUs this process may use, and where there is none, why.

    ``CUDA_VISIBLE_DEVICES`` is honoured, as numbers or as UUIDs. CUDA is not initialised.
    """
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is not None and wanted.strip() in ("", "-1", "NoDevFiles"):
        return [], "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        with nvml():
            count = pynvml.nvmlDeviceGetCount()
            gpus = [_describe(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(count)]
    except pynvml.NVMLError as error:
        return [], f"no NVIDIA GPU: {error}"
    return select(gpus, wanted), "no GPU matches CUDA_VISIBLE_DEVICES"


def select(gpus: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """Return those of `gpus` that ``CUDA_VISIBLE_DEVICES=wanted`` shows, in its order.

    As in CUDA, a UUID may be shortened to a prefix, and the list ends at the first unknown entry.
    """
    if wanted is None:
        return list(gpus)
    chosen = []
    for entry in (part.strip() for part in wanted.split(",")):
        if entry.isdecimal():
            matches = [gpus[int(entry)]] if int(entry) < len(gpus) else []
        else:
            matches = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(matches) != 1:
            break
        chosen += matches
    return chosen


def shard_count(shards: int | str) -> int:
    """Return the number of shards; ``auto`` is one per visible GPU, else one."""
    return max(1, len(visible_gpus()[0])) if shards == "auto" else int(shards)


def lease_folder() -> Path:
    """Return the folder of this user's leases, made if it is missing.

    It lies in the folder that the system gives the user while he is logged in, whether or not this
    process was told of it, so that jobs and shells find the same one; else in the temporary folder.

    Raises
    ------
    Fault
        If what is there is a link, or another user's, or others may write to it.
    """
    user = os.getuid()
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{user}"))
    base = runtime if _is_private(runtime) else Path(tempfile.gettempdir())
    folder = base / f"packedesm-gpus-{user}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder):
        raise Fault(
            f"{folder}: is a link, or not a folder that you alone may write to; remove it, or set "
            "TMPDIR to a folder of your own"
        )
    return folder


def _is_private(folder: Path) -> bool:
    """Tell whether it is a folder, no link to one, that this user owns and alone may write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    own = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and stat.S_ISDIR(found.st_mode)


@contextmanager
def lease(
    gpus: Sequence[Gpu], folder: Path | None = None, poll_seconds: float = 1.0
) -> Iterator[Gpu]:
    """Hold one of `gpus` for this process alone; wait while other jobs hold them all.

    The lease is an operating system lock on a file named by the GPU's UUID: when its holder dies,
    however it dies, the lock is gone. It binds packedesm jobs of one user on one machine; between
    users and machines the cluster's scheduler decides.

    Parameters
    ----------
    gpus
        At least one GPU.
    folder
        Where the lock files lie; default: `lease_folder`.
    poll_seconds
        How often the locks are tried while all are held.
    """
    folder = folder or lease_folder()
    waiting = False
    while True:
        for gpu in gpus:
            lock = FileLock(folder / f"{gpu.uuid}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            try:
                yield gpu
            finally:
                lock.release()
            return
        if not waiting:
            logger.info("waiting: other jobs hold every GPU (%s)", plural(len(gpus), "GPU"))
            waiting = True
        time.sleep(poll_seconds)


def _describe(handle: Any) -> Gpu:
    return Gpu(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )
