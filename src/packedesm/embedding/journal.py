"""What each attempt on a shard did, told line by line as it happens."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from packedesm.embedding.claim import Claim
from packedesm.files import explained

logger = logging.getLogger(__name__)

PATTERN = "attempt-*"


class Attempts(NamedTuple):
    """What the journals of all attempts add up to."""

    started: str  # the first one's start
    restarts: int
    recomputed_packs: int
    discarded_commits: int


class Journal:
    """The journal of this attempt, a file beside those of earlier ones.

    It is not flushed to the disk: it outlives the process, and nothing but the counts in the
    report depends on it. Each line ends with a checksum of its own.
    """

    def __init__(self, folder: Path, claim: Claim) -> None:
        self._folder = folder
        number = len(self._journals()) + 1
        self._path = folder / f"attempt-{number:04d}-{claim.token}"
        self._started = claim.started
        self._note("started", claim.started)

    def pack(self, number: int) -> None:
        """Tell that a pack has been computed."""
        self._note("pack", number)

    def discarded(self, name: str) -> None:
        """Tell that a commit of an earlier attempt could not be used."""
        self._note("discarded", name)

    def attempts(self) -> Attempts:
        """Add up all attempts. Of one that committed nothing, its start and packs are known."""
        journals = [_notes(path) for path in self._journals()]
        notes = [note for journal in journals for note in journal]
        computed = [text for note, text in notes if note == "pack"]
        return Attempts(
            started=next((text for note, text in notes if note == "started"), self._started),
            restarts=len(journals) - 1,
            recomputed_packs=len(computed) - len(set(computed)),
            discarded_commits=sum(note == "discarded" for note, _text in notes),
        )

    def _journals(self) -> list[Path]:
        return sorted(self._folder.glob(PATTERN))

    def _note(self, note: str, text: Any) -> None:
        with explained(self._folder), self._path.open("a") as handle:
            line = f"{note} {text}"
            handle.write(f"{line} {_check(line)}\n")


def _notes(path: Path) -> list[tuple[str, str]]:
    """Return what a journal tells; a line that was cut short or is damaged tells nothing."""
    notes = []
    for line in path.read_text(errors="replace").splitlines():
        told, _, check = line.rpartition(" ")
        if check == _check(told):
            note, _, text = told.partition(" ")
            notes.append((note, text))
        else:
            logger.warning("%s: a line is damaged and not counted", path)
    return notes


def _check(line: str) -> str:
    return f"{zlib.crc32(line.encode()):08x}"
