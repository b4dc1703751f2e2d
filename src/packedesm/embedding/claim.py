"""Who works on a shard: the process that came last, and no other, may commit."""

from __future__ import annotations

import os
import platform
import secrets
from datetime import UTC, datetime
from pathlib import Path

from packedesm.errors import Fault
from packedesm.files import TEMPORARY, read_record, write_record


class Claim:
    """This process's claim on a shard's state.

    Each attempt writes its token into ``owner.json`` when it starts, and reads it again before
    every commit. Whoever started last wins; an earlier process that still runs, here or on a node
    that was thought lost, stops at its next commit. No clock and no lock is involved, so none can
    mislead.

    Parameters
    ----------
    folder
        The state's folder; it is made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.token = secrets.token_hex(8)
        self.started = now()
        self._folder = folder
        owner = {"token": self.token, "host": platform.node(), "pid": os.getpid()}
        write_record(folder / "owner.json", owner | {"started": self.started})
        for unfinished in folder.glob(f"{TEMPORARY}*"):
            unfinished.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise Fault if another process has taken this shard over since this one started."""
        try:
            owner = read_record(self._folder / "owner.json")
        except FileNotFoundError:
            raise Fault(f"{self._folder}: another process finished this shard; stopping") from None
        if owner["token"] != self.token:
            raise Fault(
                f"{self._folder}: superseded by process {owner['pid']} on {owner['host']}, "
                f"which took this shard over at {owner['started']}; stopping"
            )


def now() -> str:
    """Return the time of day in UTC. It may jump: intervals are measured on other clocks."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
