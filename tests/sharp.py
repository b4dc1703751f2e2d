"""Checkpoints that half precision does not carry, and a device that computes wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2

GEOMETRY = Geometry(layers=4, width=32, heads=4)


def write_sharp(path: Path, sharpness: float) -> Path:
    """Write weights whose attention is so many times sharper: rounding decides where it looks.

    Distances from float32, worst of three proteins: sharpness 8: 0.003 in float16, 0.02 in
    bfloat16; 16: 0.006, 0.04; 32: 0.015, 0.08.
    """
    return _changed(path, ("q_proj.weight", "k_proj.weight"), sharpness**0.5)


def write_large(path: Path, size: float = 1e5) -> Path:
    """Write weights between whose products numbers are so many times larger than usual."""
    _changed(path, ("fc1.weight", "fc1.bias"), size)
    content = torch.load(path, weights_only=False)
    for name, tensor in content["model"].items():
        if name.endswith("fc2.weight"):
            tensor.div_(size)
    torch.save(content, path)
    return path


def _changed(path: Path, names: tuple[str, ...], factor: float) -> Path:
    write_random_checkpoint(path, GEOMETRY, seed=3)
    content = torch.load(path, weights_only=False)  # this very test has written it
    for name, tensor in content["model"].items():
        if name.endswith(names):
            tensor.mul_(factor)
    torch.save(content, path)
    return path


@contextmanager
def computing_wrong(factor: float = 1.01) -> Iterator[None]:
    """Let one layer of our model, whatever it is loaded as, give numbers that are a little off."""
    read = PackedESM2.from_fair_esm.__func__

    def off(cls, tensors, *arguments):
        model = read(cls, tensors, *arguments)
        model.layers[1].fc2.weight.data.mul_(factor)
        return model

    with mock.patch.object(PackedESM2, "from_fair_esm", classmethod(off)):
        yield
