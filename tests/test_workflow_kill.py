"""Stop the whole workflow at any moment, as people and schedulers do: the same command goes on."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from packedesm.cli import main
from packedesm.paths import Paths
from tests.commands import Command
from tests.jobs import first_records
from tests.test_kill import digests
from tests.workflow import BIN, ROOT, snakemake, write_config

pytestmark = pytest.mark.slow

# What is sent, to whom (everybody in the terminal, or Snakemake alone), and how often.
STOPS = {
    "Ctrl-C": (signal.SIGINT, "all", 1),
    "Ctrl-C twice": (signal.SIGINT, "all", 2),
    "hang-up": (signal.SIGHUP, "all", 1),
    "kill": (signal.SIGKILL, "snakemake", 1),
}
SEEDS = (1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(2, 11)))


@pytest.fixture(scope="module")
def fasta(tmp_path_factory, uniprot_500) -> Path:
    return first_records(uniprot_500, 16, tmp_path_factory.mktemp("input") / "proteins.fasta")


def write(folder: Path, fasta: Path) -> Paths:
    config = {"shards": 2, "token_budget": 256, "max_length": 150, "verify": {"sequences": 2}}
    checkpoints = str(fasta.parent / "checkpoints")
    write_config(folder, fasta=str(fasta), commit_packs=1, checkpoints=checkpoints, **config)
    return Paths(folder / "results" / "proteins")


@pytest.fixture(scope="module")
def quiet(tmp_path_factory, fasta) -> dict[str, str]:
    """Digests of what the command gives for the same, undisturbed and in one process."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    options = {"shards": 2, "token-budget": 256, "max-length": 150}
    run = Command(fasta, out, fasta.parent / "checkpoints", **options)
    assert main(run.arguments) == 0
    return digests(run.out)


def start(folder: Path) -> subprocess.Popen:
    """Start the workflow as a terminal does, in a group of processes of its own."""
    command = [BIN / "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return subprocess.Popen(
        [*map(str, command), "--cores", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen, kind: str) -> None:
    number, whom, times = STOPS[kind]
    for _ in range(times):
        try:
            (os.killpg if whom == "all" else os.kill)(process.pid, number)
        except ProcessLookupError:
            return
        time.sleep(0.3)


def stopped(folder: Path, kind: str, jobs: int, pause: float) -> str | None:
    """Stop a workflow so long after so many of its jobs are done.

    Return what it printed, or None if it had come to its end.
    """
    process, lines, begun = start(folder), [], False
    for line in process.stdout:
        lines.append(line)
        begun = "Execute" in line or begun
        if begun and sum("Finished jobid" in text for text in lines) >= jobs:
            break
    time.sleep(pause)
    stop(process, kind)
    lines.append(process.stdout.read())
    return "".join(lines) if process.wait(timeout=120) else None


def failures(paths: Paths, printed: str) -> list[str]:
    """Return what jobs said of errors that they did not expect.

    A Python that is interrupted while it imports answers with a traceback of its own, and those of
    several mix on the terminal: what a job has to say stands in its log, one line of it there.
    """
    logs = [path.read_text() for path in paths.root.parent.glob(".logs/**/*.log")]
    found = re.findall(r"^packedesm: .* \(see .*\)$", printed, re.MULTILINE)
    return [*found, *(text for text in logs if "Traceback" in text)]


def unlock(folder: Path) -> None:
    """Do what Snakemake says where one that was killed could not remove its lock."""
    locks = folder / ".snakemake" / "locks"
    if locks.exists() and any(locks.iterdir()):
        refused = snakemake(folder)
        assert refused.returncode != 0
        assert "can be removed with the --unlock argument" in refused.stdout
        assert snakemake(folder, "--unlock").returncode == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_workflow_that_is_stopped_goes_on_by_the_same_command(tmp_path, fasta, quiet, seed, tell):
    """Four times, each in another way, at a moment that is drawn; then it is let run."""
    chance, paths = random.Random(seed), write(tmp_path, fasta)
    kinds, steps = chance.sample([*STOPS], len(STOPS)), []
    for kind in kinds:
        moment = chance.randrange(3), chance.uniform(0, 3)
        while (printed := stopped(tmp_path, kind, *moment)) is None:
            shutil.rmtree(paths.root)  # it was faster than the stop: once more, from the start
        assert not failures(paths, printed)
        steps.append(printed.count("Finished jobid"))
        unlock(tmp_path)
    run = snakemake(tmp_path)
    assert run.returncode == 0, run.stdout
    assert digests(paths) == quiet
    assert paths.manifest.exists()
    assert "Nothing to be done" in snakemake(tmp_path).stdout
    tell(f"seed {seed}: workflow stopped by {', '.join(kinds)}; jobs finished before {steps}")
