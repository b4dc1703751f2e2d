"""Weights and reference vectors, made once for each model and kept in the scratch folder."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.contenders.base import Task
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import MODELS

SEED = 1
FOLDER = Path(__file__).parent / ".scratch"


def load(folder: Path, geometry: Geometry) -> Preparation:
    """Make the checkpoint, random weights of the true geometry, unless it is there."""
    checkpoint = folder / f"{geometry.layers}-{geometry.width}-{geometry.heads}-{SEED}.pt"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, geometry, SEED)
    return Preparation(checkpoint)


class Preparation:
    """The checkpoint, and what the reference makes of it."""

    packages = ("torch", "fair-esm")

    def __init__(self, path: Path) -> None:
        self.path = path

    def checkpoint(self) -> Path:
        """Return where the weights lie."""
        return self.path

    def reference(self, sequences: Sequence[str], device: str, threads: int) -> np.ndarray:
        """Return the mean vectors (N, width) of fair-esm in float32, one sequence at a time."""
        digest = hashlib.sha256("\n".join(sequences).encode()).hexdigest()[:16]
        path = self.path.with_name(f"{self.path.stem}-{digest}-{device}.npy")
        if not path.exists():
            # Imported here: the checkpoint can be made without fair-esm.
            from benchmarks.contenders import fair_esm

            task = Task(self.path, device, threads, self.path.parent)
            contender = fair_esm.load(task, "float32", "one by one")
            contender.prepare(sequences, 0)
            np.save(path, contender.embed())
        return np.load(path)


def main() -> None:
    """Make the checkpoints of the models that are named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    for name in options.models:
        load(options.folder, MODELS[name])


if __name__ == "__main__":
    main()
