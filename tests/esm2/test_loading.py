"""Weights go from their file to a GPU piece by piece: neither side holds them twice."""

import json
import subprocess
import sys

import pytest
import torch

from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_fair_esm
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model_files import model_files
from packedesm.esm2.registry import MODELS, Checkpoint
from packedesm.esm2.weights import tensor_shapes
from packedesm.files import combined, file_digest
from tests.esm2.checkpoint_files import write_adapter, write_huggingface_folder
from tests.esm2.loading import measure
from tests.typed import checkpoint
from tests.workflow import ROOT

SMALL = Geometry(layers=4, width=64, heads=2)
GB = 10**9


def recorded(path, geometry) -> Checkpoint:
    """Return what `prepare` would record of a checkpoint, without checking it."""
    base = path.parent / "hf" if path.name == "adapter" else None
    sha256 = combined([file_digest(file) for file in model_files(path, base)])
    where = {"path": str(path), "base": base and str(base)}
    return checkpoint(**where, geometry=geometry, sha256=sha256)


def written(folder, geometry, layout, dtype):
    """Write a checkpoint whose weights are zero; return its path."""
    path = folder / "model.pt"
    shapes = tensor_shapes(geometry)
    zeros = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    write_fair_esm(path, geometry, zeros, {})
    if layout == "fair-esm":
        return path
    write_huggingface_folder(folder / "hf", *load_state(path))
    if layout == "hugging face":
        return folder / "hf"
    width, dense = (
        geometry.width,
        "base_model.model.esm.encoder.layer.{}.output.dense.lora_{}.weight",
    )
    pairs = [
        (
            dense.format(layer, half),
            torch.zeros(2, 4 * width) if half == "A" else torch.zeros(width, 2),
        )
        for layer in range(geometry.layers)
        for half in "AB"
    ]
    return write_adapter(folder / "adapter", folder / "hf", dict(pairs))


def test_an_adapter_is_merged_one_weight_after_another(fake_cuda, tmp_path):
    path = written(tmp_path, SMALL, "adapter", torch.float32)
    found = measure(recorded(path, SMALL), torch.float16)
    assert found["weights"] == SMALL.parameters * 2 + SMALL.head_dim // 2 * 4
    merged = 4 * SMALL.width**2 * 4
    # The weight, its update and their sum, of one layer of four; all merged ones would be four.
    assert merged <= found["host"] < 3.5 * merged


@pytest.mark.parametrize("layout", ["fair-esm", "hugging face"])
@pytest.mark.parametrize("stored", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_weights_are_not_held_twice_on_either_side(fake_cuda, tmp_path, layout, stored, dtype):
    path = written(tmp_path, SMALL, layout, stored)
    found = measure(recorded(path, SMALL), dtype)
    assert found["weights"] == SMALL.parameters * dtype.itemsize + SMALL.head_dim // 2 * 4
    layer = 12 * SMALL.width**2 * 4
    assert found["weights"] <= found["device"] < found["weights"] + layer
    # On the host nothing but the rotary frequencies is made of what is mapped.
    assert found["host"] < SMALL.width * SMALL.width


@pytest.mark.slow
def test_the_3b_model_takes_little_memory_besides_its_file(made_once, fake_cuda, tmp_path, tell):
    """A file of the published layout whose weights take no room on the disk: zeros, all read."""
    geometry = MODELS["esm2_t36_3B_UR50D"]
    path = tmp_path / "3b.pt"
    shapes = tensor_shapes(geometry)
    empty = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
    with torch.serialization.skip_data():
        write_fair_esm(path, geometry, empty, {})
    size = path.stat().st_size
    assert 5.6 * GB < size < 5.7 * GB
    recorded(path, geometry).write(tmp_path / "checkpoint.json")
    guard = made_once("fake_cuda", pytest.fail) / "libguard.so"
    command = [sys.executable, "-m", "tests.esm2.loading", str(guard)]
    loaded = subprocess.run(
        [*command, str(tmp_path / "checkpoint.json"), "float16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    path.unlink()
    assert loaded.returncode == 0, loaded.stderr
    found = json.loads(loaded.stdout)
    in_gb = {name: round(value / GB, 2) for name, value in found.items()}
    tell(f"3B in float16, GB: file {size / GB:.2f}, {in_gb}")
    assert found["resident"] > 0.9 * size  # the file was read
    assert found["resident"] < size + 2 * GB
    assert found["device"] < found["weights"] + GB
