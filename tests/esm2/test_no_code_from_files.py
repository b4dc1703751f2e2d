"""No file that a user gives is executed: checkpoints and arrays may come from anywhere."""

import ast
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import packedesm
from packedesm.cli import main
from packedesm.errors import UserError
from packedesm.esm2.checkpoints import load_state, prepare, read_geometry
from packedesm.esm2.tensor_files import load_archive
from packedesm.files import write_record
from packedesm.reference.model import Reference
from tests.esm2.checkpoint_files import write_adapter, write_huggingface_folder


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def malicious(path: Path, witness: Path) -> Path:
    torch.save({"cfg": Malicious(f"touch '{witness}'"), "model": {}}, path)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, small, legacy):
    witness = tmp_path / "executed"
    content = load_archive(small)
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
    elif named_by == "an index of pickles":
        index = {"weight_map": {"esm.x": "pytorch_model-1.bin"}}
        (folder / "pytorch_model.bin").rename(folder / "pytorch_model-1.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif named_by == "an adapter":
        write_adapter(folder, small, {})
        (folder / "adapter_model.safetensors").unlink()
        malicious(folder / "adapter_model.bin", witness)
    elif named_by == "an index to outside":
        index = {"weight_map": {"esm.x": "../outside.bin"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        *("pickle", "torchscript", "no safetensors", "its name", "an index", "an index to outside"),
        *("an index of pickles", "an adapter"),
    ],
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
        "prepare": lambda: prepare(str(path), "auto"),
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
    write_record(tmp_path / "manifest.json", {"format": 2, "arrays": {"mean.npy": {}}})
    with pytest.raises(packedesm.Fault, match="damaged"):
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
