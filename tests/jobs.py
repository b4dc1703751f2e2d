"""Start embedding jobs as processes, watch how far they are, and see what they leave."""

import gzip
import signal
import subprocess
import sys
import time
from pathlib import Path

from packedesm.config import resolve, with_arrays
from packedesm.embedding.commits import Commit
from packedesm.esm2.checkpoints import prepare
from packedesm.esm2.registry import TINY
from packedesm.files import write_json
from packedesm.options import EmbedOptions, JobOptions, ReferenceOptions, ShardOptions
from packedesm.paths import COMMIT_SUFFIX, Paths
from packedesm.reference.step import write_reference
from packedesm.reference.vectors import FIRST
from packedesm.sequences.shards import write_shards
from tests import embed_job
from tests.forks import Forked
from tests.number_format import NUMBER_FORMAT
from tests.workflow import ROOT


def first_records(source: Path, count: int, path: Path) -> Path:
    """Write the first records of a gzip-compressed FASTA file to `path`."""
    records = gzip.decompress(source.read_bytes()).decode().split("\n>")[:count]
    path.write_text("\n>".join(records) + "\n")
    return path


class Sample:
    """A sample of one shard, ready to be embedded by jobs in processes of their own."""

    def __init__(self, root: Path, fasta: Path, **config) -> None:
        # A file of this sample's own: tests damage it.
        config.setdefault("model", TINY)
        config.setdefault("checkpoints", str(root / "checkpoints"))
        self.paths = Paths(root)
        resolved = resolve({"fasta": str(fasta), **NUMBER_FORMAT, **config})
        self.checkpoint = prepare(resolved["model"], resolved["checkpoints"])
        self.config = with_arrays(resolved, self.checkpoint.geometry.layers)
        self.checkpoint.write(self.paths.checkpoint)
        width = self.checkpoint.geometry.width
        write_shards([fasta], self.paths, ShardOptions.of(self.config), shards=1, width=width)
        self.reference = ReferenceOptions.of(self.config)
        self.write_reference(FIRST)
        self.state = self.paths.shard_state(0)

    def write_reference(self, part: str) -> None:
        """Compute one part of the reference."""
        write_reference(self.paths, self.checkpoint, self.reference, part, shards=1)

    def start(
        self, name: str = "job", faults: dict | None = None, *, fork: bool = True, **config
    ) -> subprocess.Popen | Forked:
        """Start a job and return its process; `name` tells several at once apart.

        `faults` are those of `tests.embed_job.inject`. A job that is not forked starts as the
        workflow starts it, and imports everything itself.
        """
        config = with_arrays(self.config | config, self.checkpoint.geometry.layers)
        if (asked := ReferenceOptions.of(config)) != self.reference:
            self.reference = asked
            self.write_reference(FIRST)
        task = {"root": str(self.paths.root), "shard": 0, "threads": 1, "faults": faults or {}}
        task |= {"options": EmbedOptions.part(config), "job": JobOptions.part(config)}
        task["log"] = str(self.paths.root / f"{name}.log")
        path = self.paths.root / f"{name}.json"
        write_json(path, task)
        if fork:
            return Forked(embed_job.run, path)
        return subprocess.Popen(
            [sys.executable, "-m", "tests.embed_job", str(path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **config) -> str:
        """Run a job to its end, which must be a good one, and return its log."""
        process = self.start(**config)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return (self.paths.root / f"{config.get('name', 'job')}.log").read_text()

    def fail(self, **config) -> tuple[int, str]:
        """Run a job that must fail with one line; return its exit status and that line."""
        process = self.start(**config)
        _, errors = process.communicate(timeout=300)
        (line,) = [text for text in errors.splitlines() if text.startswith("packedesm: ")]
        assert process.returncode in (1, 2), errors
        assert "Traceback" not in errors
        return process.returncode, line

    def stop_after(self, packs: int, **config) -> None:
        """Run a job until it has finished so many packs, and stop it."""
        process = self.start(**config)
        self.wait_for_packs(process, len(self.attempts()) + 1, packs)
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM

    def attempts(self) -> list[Path]:
        """Return the journals of the attempts so far, the newest last."""
        return sorted(self.state.glob("attempt-*"))

    def journals(self) -> dict[str, list[int]]:
        """Return the packs that each attempt has finished."""
        return {path.name: finished_packs(path) for path in self.attempts()}

    def committed(self) -> set[int]:
        """Return the packs in the commits that are there, each of which must be whole."""
        commits = [Commit.read(path) for path in self.commits()]
        return {pack.pack for commit in commits for pack in commit.statistics}

    def commits(self) -> list[Path]:
        """Return the files of committed packs that are there, the first first."""
        return sorted(self.state.glob(f"*{COMMIT_SUFFIX}"))

    def wait_while_starting(self, attempts: int, seconds: float) -> None:
        """Wait so many seconds, but not beyond the beginning of a further attempt."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(self.attempts()) <= attempts:
            time.sleep(0.01)

    def wait_for_packs(self, process, attempts: int, packs: int) -> None:
        """Wait until the newest of `attempts` has finished so many packs, or `process` ended."""
        deadline = time.monotonic() + 120
        while process.poll() is None:
            journals = self.attempts()
            if len(journals) >= attempts and len(finished_packs(journals[-1])) >= packs:
                return
            assert time.monotonic() < deadline, "the job makes no progress"
            time.sleep(0.002)


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, so far from its beginning, as a share of its length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def finished_packs(journal: Path) -> list[int]:
    """Return the packs that an attempt has finished."""
    lines = journal.read_text().split("\n")
    return [int(line.split()[1]) for line in lines if line.startswith("pack ")]
