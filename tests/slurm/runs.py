"""Runs of the workflow in the background, and where their jobs stand."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packedesm.files import read_json
from packedesm.paths import Paths
from tests.slurm.cluster import output, wait_until
from tests.workflow import ROOT

SHARDS = 4
SAMPLE = Paths("results/proteins")
MERGED = str(SAMPLE.array("mean"))
SNAKEMAKE = (sys.executable, str(Path(__file__).with_name("impatient.py")))
# What a test may not wait for. The rest is the profile's.
IMPATIENT = (
    "--slurm-init-seconds-before-status-checks=1",
    "--max-status-checks-per-second=1",
)
SLURM = ("--profile", "slurm", *IMPATIENT)
# Four jobs at a time on two cores.
ONE_THREAD = ("--set-threads=embed=1",)


class Run:
    """A Snakemake process that is at work in `folder`."""

    def __init__(self, folder: Path, process: subprocess.Popen, log: Path) -> None:
        self.folder = folder
        self.paths = Paths(folder / SAMPLE.root)
        self._process = process
        self._log = log

    def finish(self, seconds: float = 300) -> str:
        """Wait for the end, which must be a success, and return what the run printed."""
        assert self.end(seconds) == 0, self.printed()
        return self.printed()

    def end(self, seconds: float = 300) -> int:
        """Wait for the end, and return the exit status."""
        try:
            return self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"no end after {seconds:.0f} s:\n{self.printed()}") from None

    def stop(self) -> None:
        """Make sure that the process has ended; its jobs on a cluster are not cancelled."""
        self._process.kill()
        self._process.wait()

    def printed(self) -> str:
        """Return what the run has printed so far."""
        return self._log.read_text("utf-8")

    def job(self, shard: int) -> str:
        """Return the number of the running Slurm job that embeds `shard`."""
        comment = f"rule_embed_wildcards_proteins_{shard}"
        listed = output("squeue", "--noheader", "--states=running", "--format=%i %k")
        jobs = [line.split()[0] for line in listed.splitlines() if line.endswith(f" {comment}")]
        assert len(jobs) == 1, listed
        return jobs[0]

    def submitted(self, shard: int) -> list[str]:
        """Return the numbers of all Slurm jobs that have been submitted for `shard`."""
        return re.findall(rf"rule_embed/proteins_{shard}/(\d+)\.log", self.printed())

    def owner(self, shard: int) -> dict:
        """Return what the process that embeds `shard` says of itself."""
        return read_json(self.paths.shard_state(shard) / "owner.json")

    def freeze(self, *shards: int) -> dict[int, int]:
        """Stop the process of each shard once it has committed a part; return their numbers.

        So whatever happens to a job happens in the middle of it. Slurm wakes a process that it
        signals.
        """
        frozen: dict[int, int] = {}

        def look() -> bool:
            for shard in set(shards) - set(frozen):
                state = self.paths.shard_state(shard)
                if any(state.glob("*.commit")):
                    os.kill(self.owner(shard)["pid"], signal.SIGSTOP)
                    frozen[shard] = self.owner(shard)["pid"]
            assert self._process.poll() is None, self.printed()
            return len(frozen) == len(shards)

        wait_until(look, 180, f"parts of shards {shards}", poll=0.005)
        return frozen

    def record(self, shard: int) -> dict:
        """Return what the jobs of a finished shard recorded."""
        return read_json(self.paths.shard_run(shard))


def start(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> Run:
    """Start the workflow in `folder`, from the checkout, where ``--profile slurm`` is found.

    `environment` is added to that of the process, and so to that of its jobs.
    """
    here = ("--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder))
    return start_in(ROOT, folder, *here, *arguments, environment=environment)


def start_in(
    checkout: Path,
    folder: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    program: Sequence[str] = SNAKEMAKE,
) -> Run:
    """Start the workflow of a checkout; what it prints goes to a file in `folder`."""
    log = folder / "printed.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=checkout,
            env=os.environ | (environment or {}),
        )
    return Run(folder, process, log)


def job_field(job: str, field: str) -> str:
    """Return one field of what Slurm knows of a job, such as ``Restarts``."""
    described = output("scontrol", "show", "job", job, "--oneliner")
    return next(
        value
        for name, _, value in (part.partition("=") for part in described.split())
        if name == field
    )


def assert_same_bits(run: Run, undisturbed: Run) -> None:
    """Compare arrays and index, byte for byte, with those of the undisturbed run."""
    undisturbed.finish()
    for path in (SAMPLE.array("mean"), SAMPLE.index):
        assert (run.folder / path).read_bytes() == (undisturbed.folder / path).read_bytes(), path
