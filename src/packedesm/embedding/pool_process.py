"""One of several processes that embed: it holds one device, and takes shard after shard."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

from packedesm.device.hardware import leased_device
from packedesm.device.places import Place
from packedesm.embedding.child_process import (
    Said,
    Tell,
    heed_parent,
    leave_terminal_to_parent,
    log_to,
    sending,
)
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import Damaged, Fault, UserError
from packedesm.progress import telling

Embed = Callable[[int], object]  # embeds one shard


@dataclass(frozen=True)
class Ready:
    """The process holds its device."""


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


def embed_at(place: Place, embed: Embed, connection: Connection) -> None:
    """Embed the shards whose numbers come over `connection`.

    This is the whole life of a process, which was started with `SIGNALS` held back. A terminal's
    signals reach it and its parent alike: it leaves them to the parent, which sends SIGTERM where
    it is to stop. If the parent dies it stops as if that had been sent.
    """
    leave_terminal_to_parent()
    with sending(connection) as tell, stopping_on_signals() as check_stop:
        log_to(tell, place)
        heed_parent()
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
