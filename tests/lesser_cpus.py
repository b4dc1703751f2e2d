"""Repeat the tests that are marked `cpu` while torch and oneDNN take this CPU for a lesser one.

    python -m tests.lesser_cpus [options of pytest]

What one CPU can do and another cannot then fails on the machine of whoever wrote it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import NamedTuple

from tests.workflow import ROOT

TESTS = ROOT / "tests"
ATEN, ONEDNN = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"
SELECTED = "cpu and not slow and not gpu and not slurm"
MARK = "mark.cpu"
# The first product lets oneDNN tell what it takes the CPU for.
PROBE = """
import torch
print("capability", torch.backends.cpu.get_cpu_capability())
if torch.backends.mkldnn.is_available():
    torch.ops.mkldnn._linear_pointwise(torch.ones(8, 8), torch.ones(8, 8), None, "none", [], "")
"""


class Cpu(NamedTuple):
    """A kind of CPU, by the names that torch and oneDNN have for it."""

    name: str
    aten: str
    onednn: str
    isa: str  # as oneDNN tells it

    @property
    def settings(self) -> dict[str, str]:
        """The environment in which a CPU passes for this one."""
        return {ATEN: self.aten, ONEDNN: self.onednn}


class Seen(NamedTuple):
    """What a process of torch takes its CPU for."""

    capability: str
    isa: str | None  # None without oneDNN


CPUS = (  # each can do what the next one can
    Cpu(
        "one with AVX-512 but nothing for half precision",
        "avx512",
        "AVX512_CORE",
        "Intel AVX-512 with AVX512BW, AVX512VL, and AVX512DQ extensions",
    ),
    Cpu("one with AVX2", "avx2", "AVX2", "Intel AVX2"),
    Cpu("one without AVX2", "default", "SSE41", "Intel SSE4.1"),
)
CAPABILITIES = [cpu.aten.upper() for cpu in CPUS]


def see(settings: dict[str, str]) -> Seen:
    """Start a process with these settings; return what it takes its CPU for."""
    environment = os.environ | settings | {"ONEDNN_VERBOSE": "1"}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    capability = next(line.split()[1] for line in lines if line.startswith("capability "))
    isa = next((line.partition(",isa:")[2] for line in lines if ",cpu,isa:" in line), None)
    return Seen(capability, isa)


def unavailable_reason(cpu: Cpu, own: Seen) -> str | None:
    """Return why it is of no use to let a CPU that is `own` pass for `cpu`, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64") or own.capability not in CAPABILITIES:
        return "this machine's CPU is of another family"
    if CAPABILITIES.index(cpu.aten.upper()) < CAPABILITIES.index(own.capability):
        return "this machine's CPU can do less"
    if own in (Seen(cpu.aten.upper(), cpu.isa), Seen(cpu.aten.upper(), None)):
        return "this machine's CPU is one, and its tests are those without this setting"
    return None


def marked() -> list[str]:
    """Return the files with such tests: to import the others costs seconds of each process."""
    return [str(path) for path in sorted(TESTS.rglob("test_*.py")) if MARK in path.read_text()]


def main(arguments: list[str]) -> int:
    """Run the tests once for each lesser CPU; return the exit status of the first that failed."""
    own, statuses = see({}), [0]
    print(f"this machine: torch says {own.capability}, oneDNN says {own.isa}")
    for cpu in CPUS:
        setting = " ".join(f"{name}={value}" for name, value in cpu.settings.items())
        hindrance = unavailable_reason(cpu, own)
        print(f"{cpu.name} ({setting}): {hindrance or 'running'}", flush=True)
        if hindrance is None:
            command = [sys.executable, "-m", "pytest", "-m", SELECTED, *marked(), *arguments]
            done = subprocess.run(command, cwd=ROOT, env=os.environ | cpu.settings, check=False)
            statuses.append(done.returncode)
    return next(filter(None, statuses), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
