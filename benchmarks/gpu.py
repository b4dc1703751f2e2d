"""Everything that needs a GPU, in under eight minutes, on a machine without a network.

    make bench-wheels            # where there is a network: collects what that machine lacks
    python3 benchmarks/gpu.py    # there; it has Python 3.12, torch, transformers and pandas

Wheels are installed from benchmarks/.wheels into a folder of their own. The smaller model comes
first, and of each model the most important rows. Every row is printed and written when it is
measured, and what the time does not suffice for is said to be not run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "benchmarks" / ".wheels"
PACKAGES = ROOT / "benchmarks" / ".gpu-packages"

# Contenders of each model, from the top of the list, and its share of what time is left.
PLAN = {"esm2_t33_650M_UR50D": (15, 0.55), "esm2_t36_3B_UR50D": (7, 1.0)}


def main() -> int:
    """Install, then compare one model after another; return the exit status of the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu for a rehearsal")
    parser.add_argument("--models", nargs="+", default=list(PLAN))
    parser.add_argument("--minutes", type=float, default=7.5)
    options, others = parser.parse_known_args()
    end = time.monotonic() + 60 * options.minutes
    if options.device == "cuda":
        install(sorted(WHEELS.glob("*.whl")))
    # This tree before the wheel that was made of it, which is there for its version.
    paths = [str(ROOT), str(ROOT / "src"), str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    # Random weights of 3B take a core most of a minute: they are made beside the first model.
    making = [start(environment, "preparation", model) for model in options.models[1:]]
    status = 0
    for model, made in zip(options.models, [None, *making], strict=True):
        if made is not None:
            made.wait()
        first, share = PLAN.get(model, (15, 1.0))
        minutes = (end - time.monotonic()) / 60 * share
        arguments = ["--models", model, "--device", options.device, "--minutes", str(minutes)]
        arguments += ["--first", str(first), *others]
        status = max(status, start(environment, "compare", *arguments).wait())
    return status


def install(wheels: list[Path]) -> None:
    """Install the wheels into a folder of their own."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    if wheels:
        subprocess.run([*pip, "--upgrade", "--target", PACKAGES, *wheels], check=True)


def start(environment: dict[str, str], module: str, *arguments: str) -> subprocess.Popen:
    """Start a module of benchmarks as a command."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment)


if __name__ == "__main__":
    sys.exit(main())
