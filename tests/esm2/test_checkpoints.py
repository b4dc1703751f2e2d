"""Checkpoints: making, reading and refusing them."""

import argparse
import json
import zipfile
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare, read_geometry
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import DIGESTS, MODELS, TINY, Checkpoint, locate
from packedesm.files import RECORD_DIGEST, file_digest
from packedesm.reference.model import Reference
from tests.esm2.checkpoint_files import SMALL


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def rewrite(path, change):
    """Let `change` edit the content of a .pt file."""
    content = read(path)
    change(content)
    torch.save(content, path)


# Making


def test_the_random_checkpoint_is_loaded_by_fair_esm_itself(small):
    reference = Reference(small)
    assert reference.residues("MKV").shape == (3, SMALL.width)
    assert reference.representation(b"MKV").shape == (5, SMALL.width)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, small):
    again, other = tmp_path / "under another name.pt", tmp_path / "other.pt"
    write_random_checkpoint(again, SMALL, seed=5)
    write_random_checkpoint(other, SMALL, seed=6)
    assert again.read_bytes() == small.read_bytes()
    assert other.read_bytes() != small.read_bytes()


def test_activations_of_random_weights_stay_of_ordinary_size(tmp_path):
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, MODELS["esm2_t6_8M_UR50D"], seed=1)
    vectors = Reference(path).residues("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 3)
    assert 0.5 < vectors.std() < 2
    # Different residues in different places are told apart.
    assert np.linalg.norm(vectors[0] - vectors[33]) > 0.01 * np.linalg.norm(vectors[0])


def test_prepare_makes_the_tiny_model_and_says_that_it_means_nothing(tmp_path):
    record_path = tmp_path / "work" / "checkpoint.json"
    record = prepare(TINY, tmp_path / "checkpoints")
    record.write(record_path)
    path = tmp_path / "checkpoints" / f"{TINY}.pt"
    assert Checkpoint.read(record_path) == record
    assert json.loads(record_path.read_text()) == {
        "model": TINY,
        "path": str(path),
        "format": "fair-esm",
        "layers": MODELS[TINY].layers,
        "width": MODELS[TINY].width,
        "heads": MODELS[TINY].heads,
        "parameters": MODELS[TINY].parameters,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "untrained": True,
        "demo": False,
        "digest_checked": False,
        "layout": "fair-esm, float32",
        "base": None,
        "regression": None,
        "weights_sha256": "",
        RECORD_DIGEST: ANY,
    }


def test_prepare_leaves_a_file_that_is_there_alone(tmp_path):
    prepare(TINY, tmp_path)
    path = locate(TINY, tmp_path)
    before = path.stat().st_mtime_ns
    prepare(TINY, tmp_path)
    assert path.stat().st_mtime_ns == before


def test_prepare_of_a_users_file_does_not_call_it_meaningless(tmp_path, small):
    record = prepare(str(small), "auto")
    assert record.geometry == Geometry(layers=2, width=32, heads=4)
    assert record.untrained is False


def test_prepare_refuses_a_published_name_with_other_content(tmp_path):
    name = "esm2_t6_8M_UR50D"
    write_random_checkpoint(tmp_path / f"{name}.pt", MODELS[name], seed=1)
    with pytest.raises(UserError, match=rf"md5.*{DIGESTS[name]['md5']}.*packedesm fetch {name}"):
        prepare(name, tmp_path)
    assert not (tmp_path / "checkpoint.json").exists()


def test_prepare_refuses_a_tiny_model_of_another_size(tmp_path):
    write_random_checkpoint(tmp_path / f"{TINY}.pt", SMALL, seed=1)
    with pytest.raises(UserError, match=r"width=32.*width=64"):
        prepare(TINY, tmp_path)


def test_prepare_notices_one_flipped_bit_in_a_users_file(tmp_path, small):
    content = bytearray(small.read_bytes())
    content[len(content) // 2] ^= 1
    small.write_bytes(content)
    with pytest.raises(UserError, match=r"small\.pt: damaged"):
        prepare(str(small), "auto")


# Reading


def test_geometry_is_read_from_the_settings_in_the_file(small):
    assert read_geometry(small) == SMALL


def test_geometry_is_read_without_reading_the_weights(tmp_path):
    path = tmp_path / "big.pt"
    big = Geometry(layers=2, width=1024, heads=16)
    write_random_checkpoint(path, big, seed=1)
    process = Path("/proc/self/smaps_rollup")
    if not process.exists():
        pytest.skip("the kernel does not tell how much is read of a mapping")
    geometry, state = load_state(path)
    resident = resident_kilobytes(path)
    state["layers.0.fc1.weight"].sum()
    assert geometry == big
    assert resident * 1024 < 0.2 * path.stat().st_size
    assert resident_kilobytes(path) >= resident + 4 * 1024 * 1024 * 4 // 1024 // 2


def resident_kilobytes(path) -> int:
    """Return how much of the mappings of a file is in memory."""
    total, mapped = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            mapped = line.endswith(str(path))
        elif mapped and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_names_have_no_prefix_and_the_heads_are_gone(small):
    state = load_state(small)[1]
    assert "embed_tokens.weight" in state
    assert "layers.1.self_attn.rot_emb.inv_freq" in state
    assert not any(name.startswith(("encoder.", "lm_head.")) for name in state)


def test_frequencies_that_a_file_lacks_are_computed(tmp_path, small):
    geometry, state = load_state(small)
    bare = {name: x for name, x in state.items() if "inv_freq" not in name}
    frequencies = PackedESM2.from_fair_esm(bare, geometry).frequency_bits.view(torch.float32)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


# Refusing


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", bytes(range(256)) * 8, b">a\nMKV\n", b"PK\x03\x04"]
)
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.pt: not a checkpoint") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_one_line(small):
    content = small.read_bytes()
    small.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(UserError, match=r"small\.pt: not a checkpoint, or damaged"):
        load_state(small)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pt.*No such file"):
        load_state(tmp_path / "absent.pt")


def test_an_archive_that_is_not_torchs_is_one_line(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_state(path)


def test_a_checkpoint_whose_settings_are_not_those_of_esm2_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"cfg": argparse.Namespace(arch="roberta_large"), "model": {}}, path)
    with pytest.raises(UserError, match=r"not an ESM-2 checkpoint.*older ESM"):
        load_state(path)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("encoder_layers", 3, r"layers\.2\..* is missing"),
        ("encoder_layers", 1, r"unexpected tensor layers\.1\."),
        (
            "encoder_embed_dim",
            64,
            r"embed_tokens\.weight has shape \[33, 32\], expected \[33, 64\]",
        ),
        ("encoder_attention_heads", 8, r"inv_freq has shape \[4\], expected \[2\]"),
        ("encoder_attention_heads", 5, "width 32 does not split into 5 heads"),
        ("encoder_attention_heads", 32, "width 32 does not split into 32 heads of even width"),
        ("encoder_layers", "6", "number of layers is '6'"),
        ("encoder_layers", 0, "number of layers is 0"),
        ("token_dropout", False, "token_dropout is False"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(small, setting, value, message):
    rewrite(small, lambda content: setattr(content["cfg"]["model"], setting, value))
    with pytest.raises(UserError, match=rf"small\.pt.*{message}"):
        load_state(small)


def test_a_missing_tensor_is_named_with_the_file(small):
    name = "encoder.sentence_encoder.layers.0.fc2.bias"
    rewrite(small, lambda content: content["model"].pop(name))
    with pytest.raises(UserError, match=r"small\.pt: tensor layers\.0\.fc2\.bias is missing"):
        load_state(small)
