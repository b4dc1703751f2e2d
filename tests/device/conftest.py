"""CUDA's driver with made-up GPUs, for processes that ask it."""

import os
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "fake_cuda" / "driver.c"


def compile_driver(folder: Path) -> None:
    """Compile the made-up driver under the name of the real one."""
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(folder / "libcuda.so.1")], check=True)


@pytest.fixture
def cuda_driver(made_once, monkeypatch):
    """Return a function that gives CUDA's driver GPUs, in its order, from now on."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(made_once("cuda_driver", compile_driver)))

    def shows(*gpus) -> None:
        monkeypatch.setenv("MADE_UP_GPUS", ",".join(gpu.raw for gpu in gpus))

    return shows
