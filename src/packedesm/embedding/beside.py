"""Work for the CPU that goes on beside the jobs, in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from packedesm.embedding.child_process import (
    heed_parent,
    leave_terminal_to_parent,
    log,
    log_to,
    sending,
    signals_held_back,
)
from packedesm.progress import telling

logger = logging.getLogger(__name__)

# This process has threads, and may hold a GPU.
_CONTEXT = multiprocessing.get_context("spawn")
_NICE = 10  # what feeds a device goes first


@contextmanager
def beside(work: Callable[[], object], label: str) -> Iterator[None]:
    """Do `work` while the block runs, and wait for it at the end; what fails is told in the log.

    Whatever ends the block early ends the work, which must leave nothing half-written.

    Parameters
    ----------
    work
        Called in the other process, so it must be picklable.
    label
        What its lines in the log begin with.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_do, args=(work, label, theirs), daemon=True)
    try:
        with signals_held_back(), theirs:  # or its end would not be seen
            _start(process, label)
        yield
        with suppress(EOFError):
            while True:
                log(ours.recv())
        if process.pid is not None:
            process.join()
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def _start(process: BaseProcess, label: str) -> None:
    try:
        process.start()
    except OSError as error:
        logger.warning("%s: no process can be started: %s", label, error.strerror)


def _do(work: Callable[[], object], label: str, connection: Connection) -> None:
    """Be the whole life of the process."""
    leave_terminal_to_parent()
    with sending(connection) as tell, telling(lambda _done: None):
        log_to(tell, label)
        heed_parent()
        os.nice(_NICE)
        try:
            work()
        except Exception as error:
            logger.warning("%s: %s", type(error).__name__, error)
