"""One of several processes that embed: it holds one device, and takes shard after shard."""

from __future__ import annotations

import logging
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any

from packedesm.device.hardware import leased_device
from packedesm.device.places import Place
from packedesm.embedding import signals
from packedesm.embedding.signals import SIGNALS, stopping_on_signals
from packedesm.errors import Damaged, Fault, UserError
from packedesm.log import LineFormatter
from packedesm.progress import telling

# A signal that comes just before a thread begins to wait does not wake it up. So it is sent again,
# and nobody waits for longer.
REMIND_SECONDS = 1.0

Embed = Callable[[int], object]  # embeds one shard


@dataclass(frozen=True)
class Ready:
    """The process holds its device."""


@dataclass(frozen=True)
class Said:
    """What it would write to its log: attributes of a `logging.LogRecord`."""

    record: dict[str, Any]


@dataclass(frozen=True)
class Embedded:
    """How many residues of a shard are embedded, by whomever."""

    shard: int
    residues: int


@dataclass(frozen=True)
class Finished:
    """A shard is finished."""

    shard: int


@dataclass(frozen=True)
class Failed:
    """Why the process ends."""

    error: Exception


Message = Ready | Said | Embedded | Finished | Failed
Tell = Callable[[Message], None]


def embed_at(place: Place, embed: Embed, connection: Connection) -> None:
    """Embed the shards whose numbers come over `connection`.

    This is the whole life of a process, which was started with `SIGNALS` held back. A terminal's
    signals reach it and its parent alike: it leaves them to the parent, which sends SIGTERM where
    it is to stop. If the parent dies it stops as if that had been sent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with _telling(connection) as tell, stopping_on_signals() as check_stop:
        _log_to(tell, place)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        Thread(target=_stop_with_parent, daemon=True).start()
        try:
            with leased_device(place.device):
                tell(Ready())
                while (shard := _next(connection)) is not None:
                    check_stop()
                    with telling(partial(_tell_embedded, tell, shard)):
                        embed(shard)
                    tell(Finished(shard))
        except Exception as error:
            tell(Failed(_portable(error)))


def _tell_embedded(tell: Tell, shard: int, residues: int) -> None:
    tell(Embedded(shard, residues))


def _next(connection: Connection) -> int | None:
    try:
        return connection.recv()
    except (EOFError, OSError):  # the parent is gone
        return None


def _stop_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(REMIND_SECONDS)


@contextmanager
def _telling(connection: Connection) -> Iterator[Tell]:
    """Give a function that sends a message; all that it was given are sent when the block ends.

    A signal's handler may call it in the midst of another call, so a thread does the sending.
    """
    messages: SimpleQueue[Message | None] = SimpleQueue()

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


def _log_to(tell: Tell, place: Place) -> None:
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


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent, with the traceback as a note.

    Of those that are meant for the user the same; another one may hold what cannot be sent.
    """
    told = "".join(traceback.format_exception(error))
    kind = next((kind for kind in (Damaged, UserError, Fault) if type(error) is kind), None)
    text = f"{type(error).__name__}: {error}"
    portable = RuntimeError(text) if kind is None else kind(str(error))
    portable.add_note(told)
    return portable
