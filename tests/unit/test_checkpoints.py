"""Checkpoints: finding, making, reading and refusing them."""

import argparse
import ast
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import packedesm
from packedesm.checkpoints import (
    TINY,
    load_state,
    prepare,
    read_geometry,
    write_random_checkpoint,
)
from packedesm.cli import main
from packedesm.errors import UserError
from packedesm.fetch import DIGESTS
from packedesm.files import file_digest
from packedesm.model import PackedESM2
from packedesm.models import MODELS, Geometry, checkpoint_folder, locate
from packedesm.reference import Reference

SMALL = Geometry(layers=2, width=32, heads=4)
HUGGING_FACE_NAMES = {
    "embed_tokens": "embeddings.word_embeddings",
    "emb_layer_norm_after": "encoder.emb_layer_norm_after",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.rot_emb": "attention.self.rotary_embeddings",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.pt"
    write_random_checkpoint(path, SMALL, seed=5)
    return path


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def rewrite(path, change):
    """Let `change` edit the content of a .pt file."""
    content = read(path)
    change(content)
    torch.save(content, path)


def write_huggingface_folder(folder, geometry, state, *, shards=1, **settings):
    """Write `state` (fair-esm's names) as Hugging Face's EsmForMaskedLM is written."""
    folder.mkdir()
    config = {
        "model_type": "esm",
        "num_hidden_layers": geometry.layers,
        "hidden_size": geometry.width,
        "num_attention_heads": geometry.heads,
        "intermediate_size": 4 * geometry.width,
        "position_embedding_type": "rotary",
        "token_dropout": True,
        "vocab_size": 33,
        "emb_layer_norm_before": False,
        "layer_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    named = {}
    for name, tensor in state.items():
        prefix, module = "esm.", name.rpartition(".")[0]
        if name.startswith("layers."):
            _, layer, module = module.split(".", 2)
            prefix = f"esm.encoder.layer.{layer}."
        kind = name.rpartition(".")[2]
        named[f"{prefix}{HUGGING_FACE_NAMES[module]}.{kind}"] = tensor.clone()
    named["lm_head.dense.weight"] = torch.zeros(geometry.width, geometry.width)
    named["esm.contact_head.regression.bias"] = torch.zeros(1)
    named["esm.embeddings.position_ids"] = torch.arange(8)[None]
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return
    names = [f"model-{k + 1:05}-of-{shards:05}.safetensors" for k in range(shards)]
    places = {name: names[i % shards] for i, name in enumerate(named)}
    for file in names:
        part = {name: tensor for name, tensor in named.items() if places[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


# Finding


@pytest.mark.parametrize("variables", [{}, {"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}])
def test_the_automatic_folder_is_where_torch_hub_puts_checkpoints(monkeypatch, variables):
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert checkpoint_folder() == Path(torch.hub.get_dir(), "checkpoints")


def test_a_model_name_resolves_to_a_file_of_that_name(tmp_path):
    found = locate("esm2_t33_650M_UR50D", tmp_path)
    assert found == tmp_path / "esm2_t33_650M_UR50D.pt"


def test_the_path_of_a_file_resolves_to_itself(small):
    assert locate(str(small)) == small


def test_an_unknown_model_is_an_error_with_the_nearest_name_and_all_names():
    with pytest.raises(UserError) as caught:
        locate("esm2_t33_650M_UR50")
    message = str(caught.value)
    assert "did you mean esm2_t33_650M_UR50D?" in message
    assert all(name in message for name in MODELS)
    assert "\n" not in message


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        locate(str(tmp_path))


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
    record = prepare(TINY, tmp_path / "checkpoints", record_path)
    path = tmp_path / "checkpoints" / f"{TINY}.pt"
    assert json.loads(record_path.read_text()) == record
    assert record == {
        "model": TINY,
        "path": str(path),
        "format": "fair-esm",
        "layers": MODELS[TINY].layers,
        "width": MODELS[TINY].width,
        "heads": MODELS[TINY].heads,
        "parameters": MODELS[TINY].parameters,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "modified_ns": [path.stat().st_mtime_ns],
        "meaningless": True,
        "for_trial": False,
        "digest_checked": False,
    }


def test_prepare_leaves_a_file_that_is_there_alone(tmp_path):
    prepare(TINY, tmp_path, tmp_path / "checkpoint.json")
    path = locate(TINY, tmp_path)
    before = path.stat().st_mtime_ns
    prepare(TINY, tmp_path, tmp_path / "checkpoint.json")
    assert path.stat().st_mtime_ns == before


def test_prepare_of_a_users_file_does_not_call_it_meaningless(tmp_path, small):
    record = prepare(str(small), "auto", tmp_path / "checkpoint.json")
    assert (record["layers"], record["width"], record["heads"]) == (2, 32, 4)
    assert record["meaningless"] is False


def test_prepare_refuses_a_published_name_with_other_content(tmp_path):
    name = "esm2_t6_8M_UR50D"
    write_random_checkpoint(tmp_path / f"{name}.pt", MODELS[name], seed=1)
    with pytest.raises(UserError, match=rf"md5.*{DIGESTS[name]['md5']}.*packedesm fetch {name}"):
        prepare(name, tmp_path, tmp_path / "checkpoint.json")
    assert not (tmp_path / "checkpoint.json").exists()


def test_prepare_refuses_a_tiny_model_of_another_size(tmp_path):
    write_random_checkpoint(tmp_path / f"{TINY}.pt", SMALL, seed=1)
    with pytest.raises(UserError, match=r"width=32.*width=64"):
        prepare(TINY, tmp_path, tmp_path / "checkpoint.json")


def test_prepare_notices_one_flipped_bit_in_a_users_file(tmp_path, small):
    content = bytearray(small.read_bytes())
    content[len(content) // 2] ^= 1
    small.write_bytes(content)
    with pytest.raises(UserError, match=r"small\.pt: damaged"):
        prepare(str(small), "auto", tmp_path / "checkpoint.json")


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
    record = prepare(str(folder), "auto", tmp_path / "checkpoint.json")
    assert record["format"] == "huggingface"
    assert record["sha256"] == file_digest(folder / "model.safetensors")


def test_frequencies_that_a_file_lacks_are_computed(tmp_path, small):
    geometry, state = load_state(small)
    bare = {name: x for name, x in state.items() if "inv_freq" not in name}
    frequencies = PackedESM2.from_fair_esm(bare, geometry).frequency_bits.view(torch.float32)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


# Refusing


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, small, legacy):
    witness = tmp_path / "executed"
    content = read(small)
    content["extra"] = Malicious(f"touch {witness}")
    path = tmp_path / "malicious.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=r"malicious\.pt: refused, it holds code \(posix\.system\)"):
        load_state(path)
    assert not witness.exists()


def test_a_bare_pickle_is_not_executed(tmp_path):
    witness, path = tmp_path / "executed", tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Malicious(f"touch {witness}"), protocol=2))
    with pytest.raises(UserError):
        load_state(path)
    assert not witness.exists()


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


def test_a_checkpoint_without_settings_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"args": argparse.Namespace(arch="roberta_large"), "model": {}}, path)
    with pytest.raises(UserError, match=r"no 'cfg'.*older ESM"):
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type"),
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
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
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


# No way around


def malicious(path: Path, witness: Path) -> Path:
    torch.save({"cfg": Malicious(f"touch '{witness}'"), "model": {}}, path)
    return path


def hugging_face_with_pickle(folder: Path, small: Path, witness: Path, named_by: str) -> Path:
    """A Hugging Face folder whose weights are a pickle that runs a command."""
    write_huggingface_folder(folder, *load_state(small))
    weights = folder / "model.safetensors"
    weights.unlink()
    malicious(folder / "pytorch_model.bin", witness)
    malicious(folder.parent / "outside.bin", witness)
    if named_by == "its name":
        malicious(weights, witness)
    elif named_by == "an index":
        index = {"weight_map": {"esm.x": "pytorch_model.bin"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif named_by == "an index to outside":
        index = {"weight_map": {"esm.x": "../outside.bin"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "kind",
    ["pickle", "torchscript", "no safetensors", "its name", "an index", "an index to outside"],
)
@pytest.mark.parametrize("reader", ["prepare", "load_state", "read_geometry", "reference"])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.filterwarnings("ignore:.*(torch.jit|TorchScript)")
def test_no_reader_executes_what_a_checkpoint_holds(
    tmp_path, small, monkeypatch, kind, reader, forced
):
    if forced:  # torch's own way to switch its protection off
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness, path = tmp_path / "executed", tmp_path / "model.pt"
    if kind == "pickle":
        malicious(path, witness)
    elif kind == "torchscript":
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    else:
        path = hugging_face_with_pickle(tmp_path / "hf", small, witness, kind)
    readers = {
        "prepare": lambda: prepare(str(path), "auto", tmp_path / "checkpoint.json"),
        "load_state": lambda: load_state(path),
        "read_geometry": lambda: read_geometry(path),
        "reference": lambda: Reference(path),
    }
    with pytest.raises(UserError) as caught:
        readers[reader]()
    assert str(caught.value).isprintable()
    assert not witness.exists()
    assert not (tmp_path / "checkpoint.json").exists()


def test_the_command_and_verification_refuse_a_checkpoint_with_code(tmp_path, capsys):
    witness, fasta = tmp_path / "executed", tmp_path / "in.fasta"
    fasta.write_text(">a\nMKV\n")
    path = malicious(tmp_path / "model.pt", witness)
    assert main(["embed", str(fasta), "-o", str(tmp_path / "out"), "--model", str(path)]) == 2
    assert "it holds code (posix.system)" in capsys.readouterr().err
    assert not witness.exists()


def test_arrays_with_pickled_objects_are_not_loaded(tmp_path):
    witness = tmp_path / "executed"
    np.save(tmp_path / "mean.npy", np.array([Malicious(f"touch '{witness}'")], dtype=object))
    (tmp_path / "manifest.json").write_text(json.dumps({"arrays": {"mean.npy": {}}}))
    with pytest.raises(ValueError, match=r"[Oo]bject|pickle"):
        packedesm.open(tmp_path).array("mean")
    assert not witness.exists()


# What can run code from a file. torch.load appears with its safe setting, np.load with its default.
UNSAFE_IMPORTS = {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {
    *("eval", "exec", "yaml.load", "yaml.unsafe_load", "pd.read_pickle"),
    *("torch.jit.load", "torch.hub.load", "torch.hub.load_state_dict_from_url"),
    *("esm.pretrained.load_model_and_alphabet", "esm.pretrained.load_model_and_alphabet_local"),
}


def test_the_package_has_no_other_way_to_load_code():
    package = Path(packedesm.__file__).parent
    for file in [*package.rglob("*.py"), *Path(__file__).parents[2].glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not UNSAFE_IMPORTS & {name.name for name in node.names}, file
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in UNSAFE_IMPORTS, file
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert name not in UNSAFE_CALLS, file
                assert settings.get("allow_pickle", "False") == "False", file
                assert name != "torch.load" or settings.get("weights_only") == "True", file


@pytest.mark.parametrize(
    ("config", "index"), [("[]", None), ("null", None), (None, '{"weight_map": {"a": 5}}')]
)
def test_damaged_settings_of_a_hugging_face_folder_are_one_line(tmp_path, small, config, index):
    folder = tmp_path / "hf"
    write_huggingface_folder(folder, *load_state(small))
    if config:
        (folder / "config.json").write_text(config)
    if index:
        (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError):
        prepare(str(folder), "auto", tmp_path / "checkpoint.json")
