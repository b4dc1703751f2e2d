"""Made-up jobs for processes of a pool: what becomes of a shard, and at which attempt.

The processes have made-up GPUs, if there are to be any; real locks keep them apart.
"""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from packedesm.device.places import Place
from packedesm.embedding import pool
from packedesm.embedding.signals import stopping_on_signals
from packedesm.errors import Fault, UserError
from packedesm.progress import Progress
from tests.fake_cuda.nvml import Machine, MadeUpGpu

RESIDUES = 100  # of each shard


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def finds_the_disk_full() -> None:
    raise Fault("FOLDER: no space is left on the disk; free some and run again")


def is_refused() -> None:
    raise UserError("weights.pt: is gone")


def breaks() -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")


def waits() -> None:
    time.sleep(60)


def is_interrupted() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)


def takes_a_while() -> None:
    time.sleep(1)


def ignores_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


@dataclass
class Jobs:
    """Embeds a shard by name: notes that in `folder`, and does what is planned for it.

    Parameters
    ----------
    folder
        Where each attempt leaves a file, which says who made it and how it ended.
    plan
        What happens at the attempts at a shard, in the midst of it; nothing at those after them.
    on
        What happens at each shard on a GPU, by the seed of its UUID.
    gpus
        Those of the machine.
    together
        How many processes are to be at work before anything happens.
    """

    folder: Path
    plan: dict[int, tuple[Callable[[], None], ...]] = field(default_factory=dict)
    on: dict[str, Callable[[], None]] = field(default_factory=dict)
    gpus: tuple[MadeUpGpu, ...] = ()
    together: int = 1

    def __getstate__(self) -> dict:
        return {**self.__dict__, "leases": os.environ.get("XDG_RUNTIME_DIR")}

    def __setstate__(self, state: dict) -> None:  # in a process that has just begun
        self.__dict__.update(state)
        if self.gpus:
            os.environ["XDG_RUNTIME_DIR"] = state["leases"]
            Machine(list(self.gpus)).install(pytest.MonkeyPatch())

    def __call__(self, shard: int) -> None:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        attempt = len([*self.folder.glob(f"{shard}-*")])
        note = self.folder / f"{shard}-{attempt}"
        end = "begun"
        with stopping_on_signals():
            try:
                note.write_text(f"{seen} {end}")
                self._embed(shard, attempt, seen)
                end = "done"
            except BaseException as error:
                end = type(error).__name__
                raise
            finally:
                note.write_text(f"{seen} {end}")

    def _embed(self, shard: int, attempt: int, seen: str) -> None:
        logging.getLogger("made.up").info("embeds %d", shard)
        acts = [*self.plan.get(shard, ())[attempt : attempt + 1]]
        acts += [act for seed, act in self.on.items() if MadeUpGpu(seed).uuid == seen]
        before = 10 * attempt
        with Progress("embedding", RESIDUES, "residues", before=before) as progress:
            progress.add(40)
            while len([*self.folder.iterdir()]) < self.together:
                time.sleep(0.01)
            for act in acts:
                act()
            progress.add(60 - before)

    def run_to_the_end(self) -> None:
        """Run a pool of one process, forked from this one."""
        pool._CONTEXT = multiprocessing.get_context("fork")
        pool.embed_shards(self, [0], [Place("cpu", "CPU")], residues=RESIDUES, before=0)

    def attempts(self) -> list[tuple[int, str, str]]:
        """Return shard, GPU and end of every attempt, as they were begun."""
        found = []
        for path in sorted(self.folder.iterdir(), key=lambda path: path.stat().st_ctime_ns):
            seen, _, end = path.read_text().partition(" ")
            found.append((int(path.name.split("-")[0]), seen, end or "begun"))  # or being written
        return found

    def done(self) -> list[int]:
        """Return the shards that were done, each as often as it was."""
        return sorted(shard for shard, _seen, end in self.attempts() if end == "done")
