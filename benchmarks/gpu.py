"""Everything that needs a GPU, in at most nine minutes, on a machine without a network.

    make bench-wheels    # where there is a network: collects what that machine lacks
    make bench-gpu       # there; it has Python 3.12, torch, transformers and pandas

Wheels are installed from benchmarks/.wheels into a folder of their own; `benchmarks.gpu_parts.run`
does the rest and takes the options.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "benchmarks" / ".wheels"
PACKAGES = ROOT / "benchmarks" / ".gpu-packages"


def main() -> None:
    """Install, then become the command that measures."""
    install(sorted(WHEELS.glob("*.whl")))
    # This tree before the wheel that was made of it, which is there for its version.
    paths = [str(ROOT), str(ROOT / "src"), str(PACKAGES), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "benchmarks.gpu_parts.run", *sys.argv[1:]]
    os.chdir(ROOT)
    os.execve(sys.executable, command, environment)


def install(wheels: list[Path]) -> None:
    """Install the wheels into a folder of their own, unless these are there."""
    installed = PACKAGES / "installed.txt"
    names = "".join(f"{wheel.name} {wheel.stat().st_mtime_ns}\n" for wheel in wheels)
    if not wheels or (installed.is_file() and installed.read_text() == names):
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--upgrade", "--target", PACKAGES, *wheels], check=True)
    installed.write_text(names)


if __name__ == "__main__":
    main()
