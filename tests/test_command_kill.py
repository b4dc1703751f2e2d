"""Kill the command at any moment of any step and attempt: the same command goes on, same bits."""

import random
import signal
import time

import pytest

from packedesm.files import read_json
from packedesm.paths import Paths
from tests.commands import Command, bits, tracebacks

pytestmark = pytest.mark.slow

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# What is there, in the order in which it appears, when a command is killed.
MOMENTS = {
    "nothing but the claim": lambda paths: paths.lock,
    "the request": lambda paths: paths.request,
    "the checkpoint": lambda paths: paths.checkpoint,
    "shards": lambda paths: paths.sharding,
    "a commit": lambda paths: next(iter(paths.finished_work()), paths.root / "none"),
    "a shard": lambda paths: paths.shard_run(0),
    "merged arrays": lambda paths: paths.merging,
    "the verification": lambda paths: paths.verification,
    "metrics": lambda paths: paths.metrics,
    "the report": lambda paths: paths.report,
    "the manifest": lambda paths: paths.manifest,
}


def kill(run: Command, moment: str, number: int, pause: float, *, fork: bool) -> bool:
    """Start a command and send it a signal at a moment; tell whether that ended it."""
    process = run.start(fork=fork)
    while not MOMENTS[moment](run.out).exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert not tracebacks(error)
    assert process.returncode in (0, -number, 128 + number), error
    return process.returncode != 0


def go_on(run: Command, quiet: dict[str, str]) -> None:
    """Run the command again: it ends well, with the bits of a quiet run, and nothing left over."""
    status, _, error = run.run()
    assert status == 0, error
    assert bits(run.out) == quiet
    assert {path.name for path in run.out.root.iterdir()} == {
        path.name for path in Paths(run.out.root).results() if path.exists()
    }
    assert read_json(run.out.manifest)["request"]["options"]["max_length"] == 100


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.exhaustive), 3])
def test_a_command_that_is_killed_at_every_moment_in_turn_goes_on(
    tmp_path, eight, checkpoints, quiet, shards, tell
):
    """One attempt after the other comes a step further, and is killed there."""
    run = Command(eight, tmp_path / "out", checkpoints, shards=shards)
    as_a_user = shards == 1  # what CI runs is forked
    killed = [m for m in MOMENTS if kill(run, m, signal.SIGKILL, 0, fork=not as_a_user)]
    # On a busy machine the last steps may end before the signal comes.
    assert killed[:8] == [*MOMENTS][:8]
    go_on(run, quiet)
    tell(f"{shards} shards: command killed {len(killed)} times, once at each moment")


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 31))]
)
def test_three_attempts_are_killed_and_the_fourth_gives_the_same_bits(
    tmp_path, eight, checkpoints, quiet, seed, tell
):
    """At moments and by signals that are drawn, with one shard or three."""
    chance = random.Random(seed)
    run = Command(eight, tmp_path / "out", checkpoints, shards=(1, 3)[seed % 2])
    told: list[str] = []
    for step in sorted(chance.sample(range(len(MOMENTS) - 1), 3)):
        moment, number = [*MOMENTS][step], chance.choice(SIGNALS)
        pause = chance.choice((0, chance.uniform(0, 0.5)))
        if kill(run, moment, number, pause, fork=seed == 1):
            told.append(f"{moment} ({number.name})")
    go_on(run, quiet)
    tell(f"seed {seed}: command killed {len(told)} times: {', '.join(told)}")
