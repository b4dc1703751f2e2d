"""Several processes of this machine that embed shards side by side, one on each device."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from packedesm.device.places import Place
from packedesm.embedding.child_process import REMIND_SECONDS, Said, log, signals_held_back
from packedesm.embedding.pool_process import Embed, Embedded, Failed, Message, Ready, embed_at
from packedesm.errors import Fault, UserError, first_line
from packedesm.progress import Progress

logger = logging.getLogger(__name__)

# Forked processes could not use CUDA.
_CONTEXT = multiprocessing.get_context("spawn")
# A device whose process died may have been innocent, a shard whose process died too: of either kind
# a second time is enough, and the second attempt at a shard is made on another device.
_CHANCES = 2
# Seconds for a process to commit what it has finished, where the disk is slow, and to end.
_PATIENCE = 120.0


def embed_shards(
    embed: Embed, shards: Sequence[int], places: Sequence[Place], *, residues: int, before: int
) -> None:
    """Embed shards by one process at each place, which takes the next shard when it is ready.

    If a process dies, another takes up its shard where the last commit was made, and the place gets
    one more process. A place that cannot be used is left out. Whatever ends this early, every
    process is told to stop, and commits what it has finished.

    Parameters
    ----------
    embed
        Embeds one shard, by its number; called in the processes, so it must be picklable.
    shards
        Their numbers: the first are begun first.
    residues, before
        Of all shards, and how many of them are in shards that were finished before.

    Raises
    ------
    UserError, Fault, Exception
        What `embed` raised in one of the processes, with its traceback as a note; of an exception
        that is neither of the first two, the second for one shard.
    Fault
        If two processes died of one shard, or there is no place left.
    """
    with ExitStack() as stack:
        pool = _Pool(embed, shards, places, _Bar(stack, residues, before))
        try:
            pool.run()
        finally:
            pool.end()


@dataclass(eq=False)
class _Process:
    """A process that is there, as far as it has told."""

    place: Place
    process: BaseProcess
    connection: Connection
    ready: bool = False  # it holds its device
    shard: int | None = None
    error: Exception | None = None  # why it ends


class _Bar:
    """One bar for all shards, whoever embeds them; it begins when the first process does."""

    def __init__(self, stack: ExitStack, residues: int, before: int) -> None:
        self._begin = lambda: stack.enter_context(
            Progress("embedding", residues, "residues", before=before)
        )
        self._progress: Progress | None = None
        self._done: Counter[int] = Counter()  # residues, by shard
        self._taken_up: set[int] = set()

    def take_up(self, shard: int) -> None:
        """Expect that the next that is told of a shard is what was committed of it."""
        self._taken_up.add(shard)

    def note(self, shard: int, residues: int) -> None:
        """Take in how much of a shard is done."""
        self._progress = self._progress or self._begin()
        count = self._progress.found if shard in self._taken_up else self._progress.add
        self._taken_up.discard(shard)
        count(residues - self._done[shard])
        self._done[shard] = residues


class _Pool:
    def __init__(
        self, embed: Embed, shards: Sequence[int], places: Sequence[Place], bar: _Bar
    ) -> None:
        self._embed = embed
        self._bar = bar
        self._unfinished = set(shards)
        self._waiting = list(shards)
        self._places = list(places)  # that may get a process
        self._processes: list[_Process] = []
        self._started: Counter[Place] = Counter()
        self._died: defaultdict[int, list[Place]] = defaultdict(list)  # where, by shard
        self._lost: dict[Place, str] = {}  # why the last process there is no more

    def run(self) -> None:
        """Embed all shards."""
        while self._unfinished:
            while self._places and len(self._processes) < len(self._unfinished):
                self._start(self._places.pop(0))
            if not self._processes:
                each = "; ".join(f"{place.label}: {why}" for place, why in self._lost.items())
                raise Fault(f"no device is left to compute on; what is finished is kept ({each})")
            for process in self._processes:
                self._hand_out(process)
            for process, message in self._heard():
                self._heed(process, message)

    def end(self) -> None:
        """Let the processes commit and end; what interrupts this is raised when they have."""
        now = time.monotonic()
        deadline, remind = now + _PATIENCE, now
        interruption = None
        while self._processes:
            try:
                now = time.monotonic()
                if now >= remind:
                    remind = now + REMIND_SECONDS
                    self._stop()
                if now >= deadline:
                    self._give_up()
                for _process, message in self._heard():
                    if isinstance(message, Said):
                        log(message)
            except BaseException as error:
                interruption = error
        if interruption is not None:
            raise interruption

    def _stop(self) -> None:
        for process in self._processes:
            if process.shard is None:  # it has nothing to lose, and may be at a device that hangs
                process.process.kill()
            else:
                process.process.terminate()

    def _give_up(self) -> None:
        """Kill processes that do not end: what they have committed is kept."""
        for process in self._processes:
            logger.warning("%s: its process does not end, and is killed", process.place)
            process.process.kill()
        self._processes.clear()

    def _start(self, place: Place) -> None:
        self._started[place] += 1
        with signals_held_back():
            ours, theirs = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=embed_at, args=(place, self._embed, theirs))
            try:
                process.start()
            except OSError as error:
                raise Fault(f"{place}: no process can be started: {error.strerror}") from error
            finally:
                theirs.close()  # or its end would not be seen
            self._processes.append(_Process(place, process, ours))

    def _hand_out(self, process: _Process) -> None:
        """Give a process that has nothing to do the first shard that it may take."""
        if not process.ready or process.shard is not None:
            return
        ready = {other.place for other in self._processes if other.ready}
        for shard in self._waiting:
            died = self._died[shard]
            if process.place in died and not ready.issubset(died):
                continue  # for another place
            self._waiting.remove(shard)
            process.shard = shard
            self._bar.take_up(shard)
            logger.info("%s: takes shard %d", process.place, shard)
            with suppress(OSError):  # it has just died, which is seen next
                process.connection.send(shard)
            return

    def _heard(self) -> Iterator[tuple[_Process, Message | None]]:
        """Wait a little for what processes say; of one that has ended the message is None."""
        by_connection: dict[object, _Process] = {
            process.connection: process for process in self._processes
        }
        for connection in wait([process.connection for process in self._processes], REMIND_SECONDS):
            process, message = by_connection[connection], None
            try:
                message = process.connection.recv()
            except (EOFError, OSError):
                process.process.join()
                self._processes.remove(process)
            yield process, message

    def _heed(self, process: _Process, message: Message | None) -> None:
        if message is None:
            self._lose(process)
        elif isinstance(message, Ready):
            process.ready = True
        elif isinstance(message, Said):
            log(message)
        elif isinstance(message, Failed):
            process.error = message.error
            process.process.kill()  # it has said all, and may hang at a device that failed
        elif isinstance(message, Embedded):
            self._bar.note(message.shard, message.residues)
        else:
            self._unfinished.remove(message.shard)
            process.shard = None

    def _lose(self, process: _Process) -> None:
        """Do without a process that has ended, or raise what ends all of them."""
        place, shard, error = process.place, process.shard, process.error
        if process.ready and isinstance(error, UserError | Fault):
            raise error
        why = self._lost[place] = _why_it_ended(process)
        if shard is not None:
            self._died[shard].append(place)
            if len(self._died[shard]) == _CHANCES:
                raise error or Fault(
                    f"shard {shard}: two processes ended with it, the second on {place}: {why}; "
                    "what is finished is kept"
                )
            self._waiting.insert(0, shard)
        again = self._started[place] < _CHANCES and (process.ready or not error)
        if again:
            self._places.append(place)
        logger.warning(
            "%s: %s; %s%s",
            *(place, why, "it is tried once more" if again else "it is left out"),
            "" if shard is None else f", and what is left of shard {shard} goes to another process",
            exc_info=error if process.ready else None,
        )


def _why_it_ended(process: _Process) -> str:
    if isinstance(process.error, UserError | Fault):
        return str(process.error)
    if process.error is not None:
        return first_line(process.error)
    status = process.process.exitcode
    if status is None or status >= 0:
        return f"its process ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", as the system does where memory is short" if status == -signal.SIGKILL else ""
    return f"its process was ended by {name}{hint}"
