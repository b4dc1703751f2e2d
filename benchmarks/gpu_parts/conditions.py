"""On what, with what and when the figures are taken, and a digest of all that decides them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import compare
from benchmarks.gpu_parts.part import Task
from packedesm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CODE = ("src/packedesm", "benchmarks", "tests")
PACKAGES = ("triton", "transformers", "fair-esm", "fa3-fwd", "flash-attn", "nvidia-ml-py")
GPU_FIELDS = (
    *("driver_version", "vbios_version", "compute_cap", "mig.mode.current", "ecc.mode.current"),
    *("clocks.sm", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu"),
)
CHANGING = ("clocks.sm", "temperature.gpu")


def measure(task: Task) -> None:
    """Save the conditions; refuse a GPU that is asked for and not there."""
    if task.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no NVIDIA GPU here; --device cpu rehearses")
    options = compare.parser().parse_args(["--device", task.device])
    known: dict[str, Any] = compare.conditions(options)
    for package in PACKAGES:
        known["versions"][package] = version(package)
    known["gpu"] = gpu_state() if task.device == "cuda" else None
    known["key"] = key(known)
    task.save(known)


def key(known: dict[str, Any]) -> str:
    """Return a digest of code, device and versions: figures of one key belong together."""
    gpu = known["gpu"] or {}
    lasting = {name: value for name, value in gpu.items() if name not in CHANGING}
    deciding = [known[name] for name in ("chip", "cpu", "cores", "python", "versions", "cuda")]
    digest = hashlib.sha256(repr([*deciding, lasting]).encode())
    for path in code():
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:10]


def code() -> list[Path]:
    """Return every file that can change a figure or a test."""
    names = [path.relative_to(ROOT) for folder in CODE for path in (ROOT / folder).rglob("*.*")]
    # Folders whose names begin with a dot hold packages of others.
    ours = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return sorted(ROOT / name for name in ours if name.suffix in (".py", ".cpp"))


def gpu_state() -> dict[str, str]:
    """Return what nvidia-smi says of the first GPU, nothing where it says nothing."""
    # Its order of GPUs is by bus; a single one is meant where several are visible too.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    query = f"--query-gpu={','.join(GPU_FIELDS)}"
    command = ["nvidia-smi", f"--id={visible}", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(GPU_FIELDS, values, strict=True))


def version(package: str) -> str | None:
    """Return the installed version of a package, None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
