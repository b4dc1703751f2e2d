"""Compare all ways to get mean ESM-2 vectors, on the same records with the same weights.

    python -m benchmarks.compare --models esm2_t12_35M_UR50D

Every contender lives in a process of its own (`benchmarks.worker`). It loads the weights, warms
up, takes the fastest of its token budgets, and is then timed once in each round; the rounds go
through the contenders in rotating order, and only one computes at a time. What cannot be run is a
row with its reason. The JSON is written again after every measurement.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import table
from benchmarks.comparison import Comparison
from benchmarks.contenders import BASE, entries
from benchmarks.preparation import FOLDER
from benchmarks.sample import EXAMPLE, draw
from packedesm.device.hardware import Device
from packedesm.esm2.registry import MODELS
from packedesm.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SEED = 1
MAX_LENGTH = 1022

# Records of a default run: three to five minutes a model on two cores, four on a GPU (estimated).
RECORDS = {
    "cpu": {"esm2_t6_8M_UR50D": 64, "esm2_t12_35M_UR50D": 16, "esm2_t30_150M_UR50D": 6},
    "cuda": {"esm2_t33_650M_UR50D": 768, "esm2_t36_3B_UR50D": 256},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and return the exit status."""
    options = parser().parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    for model in options.models or RECORDS[options.device]:
        compare(model, options, deadline)
    return 0


def compare(model: str, options: argparse.Namespace, deadline: float) -> None:
    """Run the comparison for one model, print its table and write its JSON."""
    count = options.records or RECORDS[options.device].get(model, 32)
    head = {"model": model, "conditions": conditions(options)}
    path = options.results / f"{options.device}-{model}.json"
    comparison = Comparison(
        MODELS[model],
        draw(options.fasta, count, MAX_LENGTH, SEED),
        device=options.device,
        threads=options.threads,
        scratch=options.scratch,
        deadline=deadline,
        save=lambda result: write_json(path, head | result),
        say=partial(print, flush=True),
    )
    known = entries(options.device)
    chosen = [entry for entry in known[: options.first] if options.only in entry.key]
    base = [entry for entry in known if entry.key == BASE.key and entry not in chosen]
    comparison.run(chosen + base, options.repeats)
    print(table.for_terminal(head | comparison.result))


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """Return on what, with what and when the figures were taken."""
    host, device = Device.of(torch.device("cpu")), Device.of(torch.device(options.device))
    packages = ("torch", "numpy", "packedesm")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "source": _git("rev-parse", "--short", "HEAD:src/packedesm"),  # survives a rebase
        "changed_since": bool(_git("status", "--porcelain", "src", "benchmarks/*.py")),
        "chip": device.name,
        "cpu": host.name,
        "cores": os.cpu_count(),
        "memory_bytes": host.memory_bytes,
        "cpu_features": _cpu_features(),
        "threads": options.threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
        "cuda": torch.version.cuda,
        "fasta": options.fasta.name,
        "max_length": MAX_LENGTH,
        "seed": SEED,
        "repeats": options.repeats,
    }


def _cpu_features() -> list[str]:
    known = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return []
    return [feature for feature in known if feature in words]


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cores() -> int | None:
    """Return how many cores this process may use; macOS tells only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = made.add_argument
    add("--models", nargs="+", choices=MODELS, metavar="MODEL", help="default: by device")
    add("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=cores())
    add("--records", type=int, help="default: by model")
    add("--repeats", type=int, default=3)
    add("--minutes", type=float, default=60, help="start nothing new after so many")
    add("--only", default="", help="only contenders whose name holds this, and fair-esm")
    add("--first", type=int, help="only so many contenders, from the top of the list")
    add("--fasta", type=Path, default=EXAMPLE)
    add("--results", type=Path, default=ROOT / "benchmarks" / "results")
    add("--scratch", type=Path, default=FOLDER)
    return made


if __name__ == "__main__":
    sys.exit(main())
