"""What a shard's job has done so far, kept where the next attempt finds it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from packedesm.embedding.claim import Claim
from packedesm.embedding.commits import Commit, CommitWriter
from packedesm.embedding.journal import PATTERN, Journal
from packedesm.embedding.pack import FinishedPack, PackStatistics
from packedesm.embedding.replan import Replan
from packedesm.embedding.startup import taken_to_start
from packedesm.embedding.writer import Writer
from packedesm.errors import Damaged, plural
from packedesm.files import RECORD_DIGEST, read_record, remove_folder, write_record
from packedesm.options import EmbedPlan
from packedesm.paths import COMMIT_SUFFIX

T = TypeVar("T")
logger = logging.getLogger(__name__)

FORMAT = 6  # of the files in the state; another one starts over


class Settled(NamedTuple):
    """What a shard's first attempt settled for all that follow."""

    plan: EmbedPlan
    kind: str  # of the device that it ran on: its vectors have bits that others do not give
    name: str  # of that device, for people: another one of its kind may go on


class Attempt(NamedTuple):
    """What an attempt spent on the packs that it committed, and what its device could do."""

    seconds: float  # of embedding
    peak: float | None  # of the model's matrix products before its first pack, FLOP/s


class ShardState:
    """Context manager: the folder of a shard's unfinished job, claimed by this process.

    It holds ``owner.json`` (see `packedesm.embedding.claim`), ``plan.json`` (what was asked for,
    and what was settled), ``replans.json`` (which packs were planned anew), commits of finished
    packs (see `packedesm.embedding.commits`) and a journal of each attempt.

    Parameters
    ----------
    folder
        The state's folder; it must survive a failure of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claim = Claim(folder)
        self.fingerprint = ""  # of what decides the vectors, once `adopt` has fixed it
        self.seconds_before = 0.0  # of embedding, in earlier attempts
        self.timed = {"starting": taken_to_start()}  # this attempt's parts, as in `Seconds`
        self._setup_seconds = 0.0
        self._clock = time.perf_counter()
        self._commits: list[Commit] = []

    def __enter__(self) -> ShardState:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, FileNotFoundError):
            self.claim.check()  # who finishes the shard removes the folder under the others

    def settled(self, asked: Mapping[str, Any]) -> Settled | None:
        """Return what earlier attempts have settled, so that this one goes on from their packs.

        None if they were asked for something else, or have committed nothing: then everything is
        settled anew.

        Parameters
        ----------
        asked
            As `adopt` takes it.
        """
        before = self._read_plan()
        if not before or _changes(before, asked) or not self._commit_files():
            return None
        return Settled(EmbedPlan.from_json(before["plan"]), **before["device"])

    def adopt(self, asked: Mapping[str, Any], settled: Settled) -> None:
        """Fix what decides the vectors, for this attempt and all that follow.

        If an earlier attempt was asked for something else, all it has done is thrown away.

        Parameters
        ----------
        asked
            What the vectors were asked for and are made from, by name; plain values.
        settled
            What that came to: where `settled` gave something, the same.

        Raises
        ------
        Fault
            If another process has taken over: what is there is its own.
        """
        self.claim.check()  # to load a model can take minutes
        device = {"kind": settled.kind, "name": settled.name}
        content = {"format": FORMAT, "asked": asked, "plan": settled.plan.as_json()}
        content = json.loads(json.dumps({**content, "device": device}))
        before = self._read_plan()
        if before is not None:
            changes = _changes(before, asked)
            if not changes:
                content["asked"] = before["asked"]  # or the fingerprint would be another
            if changes or _deciding(before) != _deciding(content):
                self._start_over(changes)
            else:
                content = before
        write_record(self.folder / "plan.json", content)
        text = json.dumps(_deciding(content), sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self._journal = Journal(self.folder, self.claim)

    def _read_plan(self) -> dict[str, Any] | None:
        """Return what ``plan.json`` holds, nothing if it is damaged, None if there is none."""
        try:
            content = read_record(self.folder / "plan.json")
        except FileNotFoundError:
            return None
        except Damaged:
            return {}
        del content[RECORD_DIGEST]
        return content

    def _commit_files(self) -> list[Path]:
        return sorted(self.folder.glob(f"*{COMMIT_SUFFIX}"))

    def _start_over(self, changes: list[str]) -> None:
        if self._commit_files():
            what = "; ".join(changes)
            logger.warning("starting over, what was finished is thrown away: %s", what)
        for pattern in (f"*{COMMIT_SUFFIX}", PATTERN, "replans.json"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def replans(self) -> list[Replan]:
        """Return what earlier attempts planned anew, in order."""
        path = self.folder / "replans.json"
        try:
            content = read_record(path)
        except FileNotFoundError:
            return []
        except Damaged as error:
            logger.warning("%s; packs that were planned anew are computed again", error)
            return []
        if content.get("fingerprint") != self.fingerprint:  # its plan is lost
            return []
        return [Replan.from_json(replan) for replan in content["replans"]]

    def remember_replans(self, replans: Sequence[Replan]) -> None:
        """Keep what was planned anew for the attempts to come, before any of it is committed.

        Raises
        ------
        Fault
            If another process has taken over: it has a plan of its own.
        """
        self.claim.check()
        planned = [replan.as_json() for replan in replans]
        content = {"fingerprint": self.fingerprint, "replans": planned}
        write_record(self.folder / "replans.json", content)

    def committed(self, packs: Container[int]) -> dict[int, PackStatistics]:
        """Return the packs that earlier attempts have committed; discard what is of no use.

        Parameters
        ----------
        packs
            The numbers of the plan. A commit that holds another is of a plan that is lost.

        Raises
        ------
        Fault
            If something is to be discarded and another process has taken over.
        """
        for path in self._commit_files():
            reason = "it is damaged"
            with suppress(Damaged):
                commit = Commit.read(path)
                reason = "it belongs to another input or configuration"
                if commit.description["fingerprint"] == self.fingerprint:
                    if all(pack.pack in packs for pack in commit.statistics):
                        self._commits.append(commit)
                        continue
                    reason = "it belongs to packs that were planned otherwise"
            self.claim.check()  # or they are a successor's, of packs that it has planned anew
            logger.warning("discarding %s: %s; its packs are computed again", path, reason)
            self._journal.discarded(path.name)
            path.unlink(missing_ok=True)
        found = self.statistics()
        if found:
            logger.info("kept from earlier attempts: %s", plural(len(found), "pack"))
        self.seconds_before = max((pack.finished_seconds for pack in found.values()), default=0.0)
        return found

    def deferred(self) -> list[int]:
        """Return the records that earlier attempts have deferred: their places in the shard."""
        places: list[int] = []
        for commit in self._commits:
            numbers = {pack.pack for pack in commit.statistics if pack.deferred_records}
            if numbers:
                places += [int(place) for pack in commit.packs(numbers) for place in pack.deferred]
        return places

    def timing(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        """Return what `work` does, and note in `timed` how long it takes."""
        start = time.perf_counter()
        done = work(*arguments)
        self.timed[what] = time.perf_counter() - start
        return done

    @contextmanager
    def committing(
        self, *, seconds: float, packs: int, peak: float | None = None
    ) -> Iterator[Callable[[FinishedPack], None]]:
        """Give the sink of this attempt; whatever ends the block, what has finished is committed.

        Parameters
        ----------
        seconds, packs
            Most time, and most packs, between two commits.
        peak
            See `Attempt`, of this one.

        Raises
        ------
        Fault
            If another process takes over, or the disk is full.
        """
        self._setup_seconds = time.perf_counter() - self._clock
        description = {
            "fingerprint": self.fingerprint,
            "attempt": self.claim.token,
            "setup_seconds": self._setup_seconds,
            "matmul_peak_flops": peak,
        }
        writer = CommitWriter(
            self.folder, description, self.claim.check, seconds=seconds, packs=packs
        )

        def add(pack: FinishedPack) -> None:
            self._journal.pack(pack.statistics.pack)
            writer.add(pack)

        try:
            yield add
        finally:
            with Writer() as thread:  # a signal would interrupt it in this one
                thread.put(writer.commit, 0)
        self._commits += writer.committed

    def finished(self) -> Iterator[FinishedPack]:
        """Yield every committed pack once, commit by commit; Damaged as `Commit.packs`."""
        seen: set[int] = set()
        for commit in self._commits:
            new = {pack.pack for pack in commit.statistics} - seen
            yield from commit.packs(new)
            seen |= new

    def statistics(self) -> dict[int, PackStatistics]:
        """Return the statistics of every committed pack by its number, in order."""
        found: dict[int, PackStatistics] = {}
        for commit in self._commits:
            for pack in commit.statistics:
                found.setdefault(pack.pack, pack)
        return dict(sorted(found.items()))

    def attempts(self) -> dict[str, Any]:
        """Return what the journals of all attempts add up to, by the names of `ShardRun`."""
        return self._journal.attempts()._asdict()

    def embedding_attempts(self) -> list[Attempt]:
        """Return the attempts that have committed packs, in order."""
        ends: dict[str, float] = {}
        peaks: dict[str, float | None] = {}
        for commit in self._commits:
            name = commit.description["attempt"]
            last = max(pack.finished_seconds for pack in commit.statistics)
            ends[name] = max(last, ends.get(name, 0.0))
            peaks[name] = commit.description["matmul_peak_flops"]
        order = sorted(ends, key=ends.__getitem__)
        return [
            Attempt(ends[name] - before, peaks[name])
            for before, name in zip([0.0, *(ends[name] for name in order)], order, strict=False)
        ]

    def setup_and_total_seconds(self) -> tuple[float, float]:
        """Return the seconds of all attempts, up to now: before their first pack, and in all."""
        setups = {
            commit.description["attempt"]: commit.description["setup_seconds"]
            for commit in self._commits
        }
        before = sum(seconds for attempt, seconds in setups.items() if attempt != self.claim.token)
        now = time.perf_counter() - self._clock
        return before + self._setup_seconds, before + self.seconds_before + now

    def remove(self) -> None:
        """Delete the state: the shard is written, and this process is still the one to say so."""
        self.claim.check()
        remove_folder(self.folder)  # a superseded process may still be writing into it


def _changes(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Return in words what is asked for now and neither was before nor came of that."""
    if not before:
        return ["plan.json is damaged"]
    if before["format"] != FORMAT:
        return [f"format was {before['format']}, is {FORMAT}"]
    came = before["asked"] | before["plan"]
    return [
        f"{name} was {came[name]!r}, is {value!r}" if name in came else f"{name} is new"
        for name, value in json.loads(json.dumps(asked)).items()
        if value not in (before["asked"].get(name), came.get(name))
    ]


def _deciding(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of ``plan.json`` decides the vectors."""
    plan = {name: value for name, value in content["plan"].items() if name != "reasons"}
    return {**content, "plan": plan, "device": content["device"]["kind"]}
