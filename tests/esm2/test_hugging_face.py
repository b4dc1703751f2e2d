"""Checkpoints in Hugging Face's layout: what the .pt files hold, or one line."""

import numpy as np
import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare
from packedesm.files import combined, file_digest
from packedesm.reference.model import Reference
from tests.esm2.checkpoint_files import write_huggingface_folder


@pytest.mark.parametrize("shards", [1, 3])
def test_a_hugging_face_folder_gives_the_tensors_of_the_file(tmp_path, small, shards):
    geometry, state = load_state(small)
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, geometry, state, shards=shards)
    found_geometry, found = load_state(folder)
    assert found_geometry == geometry
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_reference_and_model_agree_on_a_hugging_face_folder(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    expected = Reference(small).residues("MKVLA")
    np.testing.assert_array_equal(Reference(folder).residues("MKVLA"), expected)


def test_prepare_records_a_hugging_face_folder(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    record = prepare(str(folder), "auto")
    assert record.format == "huggingface"
    files = (folder / "config.json", folder / "model.safetensors")
    assert record.sha256 == combined([file_digest(file) for file in files])
    assert record.bytes == files[1].stat().st_size


def test_the_index_of_several_files_is_one_of_a_models_files(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small), shards=2)
    record = prepare(str(folder), "auto")
    names = [file.name for file in record.files()]
    assert names[:2] == ["config.json", "model.safetensors.index.json"]
    assert record.sha256 == combined([file_digest(file) for file in record.files()])
    assert record.bytes == sum(file.stat().st_size for file in record.files()[2:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "rwkv"}, "model_type is 'rwkv'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_hidden_layers": None}, "number of layers is None"),
        ({"emb_layer_norm_before": True}, "emb_layer_norm_before"),
    ],
)
def test_a_hugging_face_folder_of_another_model_is_refused(tmp_path, small, settings, message):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small), **settings)
    with pytest.raises(UserError, match=message):
        load_state(folder)


def test_a_hugging_face_folder_without_safetensors_is_refused(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_state(folder)


def test_a_truncated_safetensors_file_is_one_line(tmp_path, small):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read") as caught:
        load_state(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "index"), [("[]", None), ("null", None), (None, '{"weight_map": {"a": 5}}')]
)
def test_damaged_settings_of_a_hugging_face_folder_are_one_line(tmp_path, small, config, index):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    if config:
        (folder / "config.json").write_text(config)
    if index:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError):
        prepare(str(folder), "auto")
