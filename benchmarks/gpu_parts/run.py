"""Run the parts one after another, keep what they find, go on where an earlier run has ended.

    make bench-gpu
    python -m benchmarks.gpu_parts.run --device cpu --models esm2_tiny_random    # a rehearsal

What matters most comes first. Each part has a time budget, and a share of what others leave; what
the time does not suffice for is said to be not run. The JSON is written again after every part,
with a Markdown table beside it. Its name holds a digest of the code and of the machine: the same
command goes on with the parts that are not finished, and never mixes figures of different code.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.table import as_markdown, state_of
from packedesm.esm2.registry import MODELS
from packedesm.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / ".scratch"  # of `benchmarks.preparation`
GRACE = 5.0  # seconds that a part has to stop by itself
PREFIX = "part-"  # of the folders of parts, in the scratch folder
LEAST = 2 * GRACE  # seconds in which a part can find anything

# Seconds of layers, comparison and job of each model on an H200 (estimated).
BUDGETS = {
    "esm2_t33_650M_UR50D": (25, 115, 50),
    "esm2_t6_8M_UR50D": (15, 25, 20),
    "esm2_t36_3B_UR50D": (30, 60, 40),
}


@dataclass(frozen=True)
class Part:
    """One thing to measure, by the `measure` of a module."""

    module: str
    seconds: float  # budget
    model: str | None = None

    @property
    def name(self) -> str:
        """What no other part is called."""
        module = self.module.rpartition(".")[2]
        return f"{module} {self.model}" if self.model else module


CONDITIONS = Part("benchmarks.gpu_parts.conditions", 60)


def plan(models: Sequence[str]) -> list[Part]:
    """Return all parts, the most important ones first."""
    parts = [("gpu_tests", 120, None), ("kernels", 25, None)]
    for model in models:
        budgets = BUDGETS.get(model, (25, 60, 40))
        modules = ("layers", "comparison", "job")
        parts += [(*pair, model) for pair in zip(modules, budgets, strict=True)]
    return [Part(f"benchmarks.gpu_parts.{module}", *others) for module, *others in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not finished and return the exit status: 1 if a test has failed."""
    options = parser().parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options.scratch.mkdir(parents=True, exist_ok=True)
    for left in options.scratch.glob(f"{PREFIX}*"):  # by a run that was killed
        shutil.rmtree(left)
    known = measure(CONDITIONS, options, CONDITIONS.seconds)
    if not known["finished"]:
        print(f"bench-gpu: {known['reason']}", file=sys.stderr)
        return 1
    bench = Bench(options, known["result"], end)
    todo = bench.unfinished(plan(options.models))
    with making_weights([part.model for part in todo if part.model], options) as wait:
        bench.run(todo, wait)
    print(as_markdown(bench.state))
    print(f"written to {bench.path} and {bench.path.with_suffix('.md')}")
    return int(bool(bench.state["parts"]["gpu_tests"].get("result", {}).get("failed")))


class Bench:
    """What is known so far, in `state` and in the JSON at `path`.

    Parameters
    ----------
    options
        Where to measure, and where results and weights lie.
    conditions
        What `benchmarks.gpu_parts.conditions` found.
    end
        Time on `time.monotonic` when all is to have ended.
    """

    def __init__(self, options: argparse.Namespace, conditions: dict[str, Any], end: float) -> None:
        self._options, self._end = options, end
        chip = "".join(c if c.isalnum() else "-" for c in conditions["chip"].lower())
        self.path = options.results / f"{chip}-{conditions['key']}.json"
        self.state: dict[str, Any] = {"conditions": conditions, "parts": {}}
        if self.path.exists():
            self.state["parts"] = read_json(self.path)["parts"]

    def unfinished(self, parts: Sequence[Part]) -> list[Part]:
        """Return the parts that no earlier run has finished."""
        found = self.state["parts"]
        return [part for part in parts if not found.get(part.name, {}).get("finished")]

    def run(self, parts: Sequence[Part], wait: Callable[[str, float], None]) -> None:
        """Run the parts; `wait` waits for a model's weights, at most until a time."""
        found = self.state["parts"]
        for place, part in enumerate(parts):
            if part.model:
                wait(part.model, self._end)
            left = self._end - time.monotonic()
            share = left * part.seconds / sum(other.seconds for other in parts[place:])
            entry: dict[str, Any] = {"finished": False, "reason": "not run: the time was up"}
            if left > LEAST:
                entry = measure(part, self._options, min(left, max(part.seconds, share)))
            # What an earlier run has found is kept rather than nothing.
            if "result" in entry or "result" not in found.get(part.name, {}):
                found[part.name] = entry
            self._save()
            print(f"{part.name}: {state_of(found[part.name])}", flush=True)

    def _save(self) -> None:
        self._options.results.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.state)
        write_text(self.path.with_suffix(".md"), as_markdown(self.state))


def measure(part: Part, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a part in a process of its own, which ends with its time; return what it found."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=options.scratch) as folder:
        path = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.gpu_parts.part", part.module]
        command += ["--device", options.device, "--scratch", str(options.scratch)]
        command += ["--seconds", str(seconds - GRACE), "--found", str(path)]
        command += ["--model", part.model] if part.model else []
        # A group of its own: its processes end with it.
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        try:
            process.wait(seconds)
            reason = f"failed: its process ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = "not run to its end: the time was up"
        finally:
            end_group(process)
        found = read_json(path) if path.exists() else {"finished": False}
    if not found["finished"]:
        found.setdefault("reason", reason)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return found | {"date": date, "seconds": round(time.monotonic() - start, 1)}


def end_group(process: subprocess.Popen) -> None:
    """End a process that leads a group, and all that it has started."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def making_weights(
    models: Sequence[str], options: argparse.Namespace
) -> Iterator[Callable[[str, float], None]]:
    """Make random weights of the models beside the first parts; give what waits for those of one.

    Those of 3B take a core most of a minute.
    """
    command = [sys.executable, "-m", "benchmarks.preparation", "--folder", str(options.scratch)]
    making = {
        model: subprocess.Popen([*command, model], cwd=ROOT, start_new_session=True)
        for model in dict.fromkeys(models)
    }

    def made(model: str, end: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            making[model].wait(max(0.0, end - time.monotonic()))

    try:
        yield made
    finally:
        for process in making.values():
            end_group(process)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu for a rehearsal")
    add("--models", nargs="+", choices=MODELS, metavar="MODEL", default=list(BUDGETS))
    add("--minutes", type=float, default=8.75)
    add("--results", type=Path, default=ROOT / "benchmarks" / "results" / "gpu")
    add("--scratch", type=Path, default=FOLDER)
    return made


if __name__ == "__main__":
    sys.exit(main())
