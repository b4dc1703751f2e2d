"""Several processes of one command, killed one by one or all together: same bits, nothing left."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands import Command, bits, tracebacks
from tests.jobs import first_records
from tests.workflow import BIN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    return first_records(uniprot_500, 100, tmp_path_factory.mktemp("input") / "hundred.fasta")


@pytest.fixture(scope="module")
def quiet(fasta, checkpoints, tmp_path_factory) -> dict[str, str]:
    """What one process gives for one shard if nothing disturbs it."""
    run = Command(fasta, tmp_path_factory.mktemp("quiet") / "out", checkpoints)
    status, _, error = run.run()
    assert status == 0, error
    return bits(run.out)


class Started:
    """A command with two processes, started as by a user at a terminal of his own."""

    def __init__(self, run: Command) -> None:
        self.run = run
        self.process = subprocess.Popen(
            [str(BIN / "packedesm"), *run.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def children(self) -> list[int]:
        """Return the processes that it has started: those that embed, and one of Python's own."""
        with suppress(FileNotFoundError):
            pid = self.process.pid
            return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        return []

    def embedding(self) -> list[int]:
        """Return those that embed."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.children()}
        return [pid for pid, command in commands.items() if b"resource_tracker" not in command]

    def wait_for_work(self, pause: float) -> None:
        """Wait until a pack more is committed, and a while."""
        before = set(self.run.out.finished_work())
        while set(self.run.out.finished_work()) <= before:
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.001)
        time.sleep(pause)

    def end(self) -> tuple[int, str]:
        """Wait for its end; return exit status and log."""
        _, log = self.process.communicate(timeout=120)
        return self.process.returncode, log


def left(pids: list[int], seconds: float = 10) -> list[int]:
    """Return which processes are still there after a while."""
    deadline = time.monotonic() + seconds
    while (there := [pid for pid in pids if lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return there


def lives(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def to_all(number: int) -> Callable[[Started], None]:
    """What a terminal does: the whole process group is sent a signal."""
    return lambda started: os.killpg(started.process.pid, number)


def to_the_command(number: int) -> Callable[[Started], None]:
    return lambda started: started.process.send_signal(number)


STOPS = {
    "Ctrl-C": (to_all(signal.SIGINT), signal.SIGINT),
    "SIGTERM": (to_the_command(signal.SIGTERM), signal.SIGTERM),
    "SIGTERM of a scheduler": (to_all(signal.SIGTERM), signal.SIGTERM),
    "a closed terminal": (to_all(signal.SIGHUP), signal.SIGHUP),
}


@pytest.mark.parametrize(
    "seed", [2, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(3, 31))]
)
def test_processes_that_are_stopped_and_killed_in_turn_change_no_bit(
    tmp_path, fasta, checkpoints, quiet, seed, tell
):
    """All are stopped, then the command is killed, and of the next one a process."""
    chance = random.Random(seed)
    options = {"devices": "cpu,cpu", "shards": 4, "token-budget": 128}
    run = Command(fasta, tmp_path / "out", checkpoints, **options)

    stop = chance.choice([*STOPS])
    started, (send, number) = Started(run), STOPS[stop]
    started.wait_for_work(chance.uniform(0, 0.3))
    children = started.children()
    send(started)
    status, log = started.end()
    assert status == 128 + number, log
    assert not tracebacks(log) and "resource_tracker" not in log
    assert log.count("stopping; what is finished is kept") == 1
    assert not left(children)

    started = Started(run)
    started.wait_for_work(chance.uniform(0, 0.3))
    orphans = started.children()
    started.process.kill()
    _, log = started.end()
    assert not tracebacks(log) and "resource_tracker" not in log
    assert "kept from earlier attempts" in log

    started = Started(run)  # before those of the last one have ended
    started.wait_for_work(chance.uniform(0, 0.1))
    os.kill(chance.choice(started.embedding()), signal.SIGKILL)
    status, log = started.end()
    assert status == 0, log
    assert "its process was ended by SIGKILL" in log
    assert not tracebacks(log) and "resource_tracker" not in log
    assert bits(run.out) == quiet
    assert not run.out.work.exists()
    assert not left(orphans)
    tell(f"seed {seed}: {stop}, the command killed, a process killed: same bits")
