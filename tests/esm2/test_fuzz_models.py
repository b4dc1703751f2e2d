"""Whatever a model file holds, it is loaded or refused in one line, in bounded memory and time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.tensor_files import load_archive
from tests.esm2.checkpoint_files import write_adapter, write_huggingface_folder
from tests.workflow import ROOT

SMALL = Geometry(layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "good"
    folder.mkdir()
    write_random_checkpoint(folder / "model.pt", SMALL, seed=1)
    write_huggingface_folder(folder / "folder", *load_state(folder / "model.pt"))
    geometry, state = load_state(folder / "folder")
    torch.save(state, folder / "alone.pt")
    width = geometry.width
    name = "base_model.model.esm.encoder.layer.0.attention.self.query.lora_{}.weight"
    pair = {name.format("A"): torch.ones(2, width), name.format("B"): torch.ones(width, 2)}
    write_adapter(folder / "adapter", folder / "folder", pair)
    for path in ("alone.pt", "adapter"):
        load_state(folder / path)
    return folder


@pytest.mark.parametrize(
    ("first", "count"), [(0, 300), pytest.param(300, 10_000, marks=pytest.mark.exhaustive)]
)
def test_damaged_model_files_are_loaded_or_refused_in_one_line(good, first, count, tell):
    module = "tests.esm2.fuzz_models"
    done = subprocess.run(
        [sys.executable, "-m", module, str(good.parent), str(first), str(count)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout)
    assert ends["refused"] > count / 3 and ends["loaded"] > 0
    tell(f"{count:,} damaged model files: {ends}")


NAME = "encoder.sentence_encoder.layers.0.fc1.weight"
SHAPE = (4 * SMALL.width, SMALL.width)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        (NAME, torch.ones(SHAPE, dtype=torch.bool), "layers.0.fc1.weight is bool"),
        (NAME, torch.ones(SHAPE, dtype=torch.int32), "layers.0.fc1.weight is int32"),
        (NAME, torch.ones(SHAPE, dtype=torch.complex64), "layers.0.fc1.weight is complex64"),
        (NAME, torch.ones(SHAPE).to(torch.float8_e4m3fn), "layers.0.fc1.weight is float8_e4m3fn"),
        (NAME, torch.ones(SHAPE, device="meta"), "layers.0.fc1.weight is strided, without numbers"),
        (NAME, torch.ones(SHAPE).to_sparse(), "layers.0.fc1.weight is sparse_coo, without numbers"),
        (NAME, torch.zeros(1).expand(10**9, 10**6), "claim 4,000,000"),
        (NAME, [1.0, 2.0], "layers.0.fc1.weight is no tensor"),
        (NAME.replace("encoder.sent", "sent"), torch.ones(SHAPE), "unexpected tensor"),
        (NAME.replace("sentence_encoder.", ""), torch.ones(SHAPE), "comes twice"),
        (NAME.removeprefix("encoder.sentence_encoder."), torch.ones(SHAPE), "comes twice"),
        (7, torch.ones(SHAPE), "no text in the name 7"),
    ],
)
def test_a_tensor_of_another_kind_is_refused_by_name(good, tmp_path, name, tensor, words):
    content = load_archive(good / "model.pt")
    content["model"] = dict(content["model"]) | {name: tensor}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=words):
        load_state(tmp_path / "model.pt")


@pytest.mark.parametrize("key", ["encoder_layers", "encoder_embed_dim"])
@pytest.mark.parametrize("size", [10**9, 10**30])
def test_a_claimed_size_is_bounded_before_anything_is_made(good, tmp_path, key, size):
    content = load_archive(good / "model.pt")
    setattr(content["cfg"]["model"], key, size)
    torch.save(content, tmp_path / "model.pt")
    code = f"""
import resource, time
from packedesm.esm2.checkpoints import load_state
from packedesm.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load_state({str(tmp_path / "model.pt")!r})
except UserError:
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown < 100_000, time.process_time() - begun < 5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n", done.stderr


def test_a_configuration_of_gigabytes_is_not_read(good, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with (folder / "config.json").open("wb") as handle:
        handle.truncate(3 << 30)
    with pytest.raises(UserError, match=r"config\.json: cannot be read \(3,221,225,472 bytes"):
        load_state(folder)
