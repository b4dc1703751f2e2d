"""What a shard's job has done so far, kept where the next attempt finds it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from packedesm.embedding.commits import SUFFIX, DamagedPart, Part, PartWriter
from packedesm.embedding.runner import FinishedPack, PackStatistics
from packedesm.errors import Fault
from packedesm.files import TEMPORARY, explained, read_json, write_json

logger = logging.getLogger(__name__)

FORMAT = 1  # of parts and plan; another one starts over


class ShardState:
    """Context manager: the folder of a shard's unfinished job, and this process's claim on it.

    It holds ``owner.json`` (who may commit), ``plan.json`` (what decides the vectors),
    ``limit.json`` (what fits into memory), parts (see `packedesm.embedding.commits`) and a journal
    of each attempt. One attempt commits at a time: each writes its token into ``owner.json`` when
    it starts, and reads it again before every commit. Whoever started last wins; an earlier process
    that still runs, here or on a node that was thought lost, stops at its next commit. No clock and
    no lock is involved, so none can mislead.

    Parameters
    ----------
    folder
        The state's folder; it must survive a failure of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(8)
        self.started = now()
        self.fingerprint = ""
        self.setup_seconds = 0.0
        self.seconds_before = 0.0  # of embedding, in earlier attempts
        self._clock = time.perf_counter()
        self._parts: list[Part] = []
        self._journal = folder  # a file, once `settle` has settled which attempt this is
        self._claim()

    def __enter__(self) -> ShardState:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            self.check_owner()  # who finishes the shard removes the folder under the others

    # Who may commit

    def _claim(self) -> None:
        owner = {"token": self.token, "host": platform.node(), "pid": os.getpid()}
        write_json(self.folder / "owner.json", owner | {"started": self.started})
        for left in self.folder.glob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)

    def check_owner(self) -> None:
        """Raise Fault if another process has taken this shard over since this one started."""
        try:
            owner = read_json(self.folder / "owner.json")
        except FileNotFoundError:
            raise Fault(f"{self.folder}: another process finished this shard; stopping") from None
        except ValueError:
            raise Fault(f"{self.folder}/owner.json: damaged; run again") from None
        if owner.get("token") != self.token:
            raise Fault(
                f"{self.folder}: superseded by process {owner.get('pid')} on {owner.get('host')}, "
                f"which took this shard over at {owner.get('started')}; stopping"
            )

    # What decides the vectors

    def settle(self, plan: Mapping[str, Any], remembered: Sequence[str]) -> dict[str, Any]:
        """Fix what decides the vectors, and return it.

        If an earlier attempt had another plan, all it has done is thrown away.

        Parameters
        ----------
        plan
            Everything that decides the vectors and their packs, by name; plain values.
        remembered
            Names of values that the first attempt chose by itself, such as a token budget that
            fits the free memory of its GPU: they are taken over from it.
        """
        plan = json.loads(json.dumps({"format": FORMAT, **plan}))
        path = self.folder / "plan.json"
        try:
            before = read_json(path)
        except FileNotFoundError:
            before = None
        except ValueError:
            before = {}
        if before is not None:
            taken_over = plan | {name: before.get(name) for name in remembered}
            if taken_over == before:
                plan = before
            else:
                self._start_over(before, plan)
        write_json(path, plan)
        self.fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        self._open_journal()
        return plan

    def _start_over(self, before: dict[str, Any], plan: dict[str, Any]) -> None:
        changes = [
            f"{name} was {before[name]!r}, is {value!r}" if name in before else f"{name} is new"
            for name, value in plan.items()
            if before.get(name) != value
        ]
        what = "; ".join(changes) or "plan.json is damaged"
        logger.warning("starting over, what was finished is thrown away: %s", what)
        for pattern in (f"*{SUFFIX}", "attempt-*", "limit.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def token_limit(self) -> int | None:
        """Return the most tokens that fitted into memory at once, if an attempt found out."""
        try:
            return int(read_json(self.folder / "limit.json"))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def remember_limit(self, tokens: int) -> None:
        """Keep the most tokens that fit into memory for the attempts to come."""
        write_json(self.folder / "limit.json", tokens)

    # What stands

    def standing(self) -> dict[int, PackStatistics]:
        """Return the packs that earlier attempts have committed; discard what is damaged."""
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                part = Part.read(path)
                if part.description["fingerprint"] != self.fingerprint:
                    raise DamagedPart("it belongs to another input or configuration")
            except DamagedPart as error:
                logger.warning("discarding %s: %s; its packs are computed again", path, error)
                self._note("discarded", path.name)
                path.unlink(missing_ok=True)
            else:
                self._parts.append(part)
        standing = self.statistics()
        if standing:
            logger.info("%d packs of earlier attempts stand and are kept", len(standing))
        self.seconds_before = max(
            (pack.finished_seconds for pack in standing.values()), default=0.0
        )
        return standing

    @contextmanager
    def committing(
        self, outputs: Sequence[str], *, seconds: float, packs: int
    ) -> Iterator[Callable[[FinishedPack], None]]:
        """Give the sink of this attempt; whatever ends the block, what has finished is committed.

        Parameters
        ----------
        outputs
            The arrays that each pack has.
        seconds, packs
            Most time, and most packs, between two commits.

        Raises
        ------
        Fault
            If another process takes over, the disk is full, or a part is not read as written.
        """
        self.setup_seconds = time.perf_counter() - self._clock
        description = {
            "fingerprint": self.fingerprint,
            "attempt": self.token,
            "setup_seconds": self.setup_seconds,
            "outputs": list(outputs),
        }
        writer = PartWriter(
            self.folder, description, self.check_owner, seconds=seconds, packs=packs
        )

        def add(pack: FinishedPack) -> None:
            self._note("pack", pack.statistics.pack)
            writer.add(pack)

        try:
            yield add
        except Fault:
            writer.abandon()  # superseded, or no space: a commit would fail again
            raise
        except BaseException:
            writer.commit()
            raise
        writer.commit()
        self._parts += [_read_back(path) for path in writer.committed]

    def finished(self) -> Iterator[FinishedPack]:
        """Yield every committed pack once, part by part."""
        seen: set[int] = set()
        for part in self._parts:
            new = {pack.pack for pack in part.statistics} - seen
            yield from part.packs(new)
            seen |= new

    def statistics(self) -> dict[int, PackStatistics]:
        """Return the statistics of every committed pack by its number, in order."""
        found: dict[int, PackStatistics] = {}
        for part in self._parts:
            for pack in part.statistics:
                found.setdefault(pack.pack, pack)
        return dict(sorted(found.items()))

    def history(self) -> dict[str, Any]:
        """Return what all attempts add up to, for ``run.json``.

        ``started`` is the first attempt's start; ``setup`` and ``total`` are seconds up to now.
        Of an attempt that committed nothing, only its start and its packs are known.
        """
        journals = [path.read_text().splitlines() for path in sorted(self._journals())]
        notes = [line.split(" ", 1) for journal in journals for line in journal if " " in line]
        computed = [text for note, text in notes if note == "pack"]
        setups = {
            part.description["attempt"]: part.description["setup_seconds"] for part in self._parts
        }
        before = sum(seconds for attempt, seconds in setups.items() if attempt != self.token)
        now = time.perf_counter() - self._clock
        return {
            "started": next((text for note, text in notes if note == "started"), self.started),
            "restarts": len(journals) - 1,
            "recomputed_packs": len(computed) - len(set(computed)),
            "discarded_parts": sum(note == "discarded" for note, _text in notes),
            "setup": before + self.setup_seconds,
            "total": before + self.seconds_before + now,
        }

    def remove(self) -> None:
        """Delete the state: the shard is published, and this process is still the one to say so."""
        self.check_owner()
        # First out of the way, in one step: a superseded process may still be writing into it.
        grave = self.folder.with_name(f"{TEMPORARY}{self.token}")
        self.folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)

    # The journal of this attempt. It is not flushed to the disk: it outlives the process, and
    # nothing but the counts in the report depends on it.

    def _journals(self) -> list[Path]:
        return list(self.folder.glob("attempt-*"))

    def _open_journal(self) -> None:
        self._journal = self.folder / f"attempt-{len(self._journals()) + 1:04d}-{self.token}"
        self._note("started", self.started)

    def _note(self, note: str, text: Any) -> None:
        with explained(self.folder), self._journal.open("a") as handle:
            handle.write(f"{note} {text}\n")


def now() -> str:
    """Return the time of day in UTC. It may jump: intervals are measured on other clocks."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _read_back(path: Path) -> Part:
    try:
        return Part.read(path)
    except DamagedPart as error:
        raise Fault(
            f"{path}: {error}, though it was just written; check the disk, run again"
        ) from None
