"""A process that this one starts: signals reach it in order, and its log is this one's."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.resource_tracker import ensure_running
from queue import SimpleQueue
from threading import Thread
from typing import Any

from packedesm.embedding import signals
from packedesm.embedding.signals import SIGNALS
from packedesm.log import LineFormatter

# A signal that comes just before a thread begins to wait does not wake it up. So it is sent again,
# and nobody waits for longer.
REMIND_SECONDS = 1.0

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Said:
    """What it would write to its log: attributes of a `logging.LogRecord`."""

    record: dict[str, Any]


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let a process that is started in the block begin its life without being interrupted."""
    ensure_running()  # or `start` would do it, and let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def log(message: Said) -> None:
    """Write to this process's log what another one said."""
    record = logging.makeLogRecord(message.record)
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def leave_terminal_to_parent() -> None:
    """Ignore a terminal's signals, which reach both; the parent sends SIGTERM to stop this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def heed_parent() -> None:
    """Let through `SIGNALS` that were held back; if the parent dies stop as if it sent SIGTERM."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    Thread(target=_stop_with_parent, daemon=True).start()


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(REMIND_SECONDS)


@contextmanager
def sending(connection: Connection) -> Iterator[Tell]:
    """Give a function that sends a message; all that it was given are sent when the block ends.

    A signal's handler may call it in the midst of another call, so a thread does the sending.
    """
    messages: SimpleQueue[object] = SimpleQueue()

    def send() -> None:
        while (message := messages.get()) is not None:
            try:
                connection.send(message)
            except OSError:  # the parent is gone
                return

    thread = Thread(target=send, daemon=True)
    thread.start()
    try:
        yield messages.put
    finally:
        messages.put(None)
        thread.join()


def log_to(tell: Tell, place: object) -> None:
    """Let all that this process logs be told, each line with the name of its place."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = {
                key: getattr(record, key) for key in ("name", "levelno", "levelname", "created")
            }
            error = record.exc_info and LineFormatter().formatException(record.exc_info)
            tell(Said(told | {"msg": f"{place}: {record.getMessage()}", "exc_text": error}))

    handler = Handler()
    # That it was told to stop its parent has said already.
    handler.addFilter(lambda record: record.name != signals.__name__)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
