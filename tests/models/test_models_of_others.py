"""Models as other libraries write them: our vectors are theirs, within float32's bar.

By make test-models, which installs those libraries beside the environment. Each writes in a process
of its own, and computes the vectors that ours are compared with from what it wrote.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from packedesm.cli import main
from packedesm.device.auto import load_model
from packedesm.errors import UserError
from packedesm.esm2.checkpoints import prepare, read
from packedesm.esm2.model import PackedESM2
from packedesm.outputs import needs
from packedesm.reference.model import Reference
from tests.esm2.test_contacts import FLOAT32, forward, furthest
from tests.esm2.test_equivalence import assert_residues_equal, embed
from tests.workflow import ROOT

SWITCH = "PACKEDESM_TEST_MODELS"  # the folder that make test-models installs in
pytestmark = [
    pytest.mark.models,
    pytest.mark.skipif(SWITCH not in os.environ, reason="by make test-models"),
]

# Environment, module that writes, and cases with what the layout is called.
OLD = {
    "masked_lm": "transformers {}, EsmForMaskedLM, float32, model.safetensors",
    "base": "transformers {}, EsmModel, float32, model.safetensors",
    "sequences": "transformers {}, EsmForSequenceClassification, float32, several files",
    "residues": "transformers {}, EsmForTokenClassification, bfloat16, model.safetensors",
    "half": "transformers {}, EsmModel, float16, model.safetensors",
    "pickled": "transformers {}, EsmForMaskedLM, float32, pytorch_model.bin",
    "pickled_shards": "transformers {}, EsmForMaskedLM, float32, several files",
    "state_dict.pt": "state dict in Hugging Face's names, prefix 'esm.', float32",
}
ADAPTED = "merged into: Hugging Face transformers {}, EsmForSequenceClassification, bfloat16"
NEW = {name: layout for name, layout in OLD.items() if not name.startswith("pickled")} | {
    "compiled.bin": "state dict in Hugging Face's names, in 'model_state_dict', prefix 'esm.'",
    "stretched": "transformers {}, EsmModel, float32, model.safetensors",
    "lora": f"LoRA of rank 4 (peft 0.21.2, 6 matrices) {ADAPTED}",
    "lora_everywhere": f"LoRA of rank 3, 4 (peft 0.21.2, 18 matrices) {ADAPTED}",
    "lora_all_biases": ADAPTED,
    "lora_own_biases": ADAPTED,
    "lora_norms": ADAPTED,
    "lora_pickled": ADAPTED,
    "lora_of_encoder": ADAPTED,
    "lora_merged": "transformers {}, EsmForSequenceClassification, float32, model.safetensors",
}
TRAININGS = {
    "state_dict.pt": "state dict in fair-esm's names, float32",
    "half.pt": "state dict in fair-esm's names, float16",
    "distributed.pt": "state dict in fair-esm's names, in 'model', float32",
    "lightning.ckpt": "in 'state_dict' of Lightning 2.6.6, prefix 'model.', float32",
}
WRITERS = {
    "transformers-4.30": ("write_transformers", OLD),
    "transformers-4.57": ("write_transformers", OLD),
    "transformers-5.24": ("write_transformers", NEW),
    "lightning": ("write_trainings", TRAININGS),
}
CASES = [(library, name) for library, (_, cases) in WRITERS.items() for name in cases]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Give the folder that a library wrote to; each writes once."""
    folders = {}

    def write(library: str) -> Path:
        if library not in folders:
            packages = Path(os.environ[SWITCH]) / library
            assert packages.is_dir(), f"{packages} is missing: make test-models installs it"
            folders[library] = tmp_path_factory.mktemp(library)
            module = f"tests.models.{WRITERS[library][0]}"
            done = subprocess.run(
                [sys.executable, "-m", module, str(folders[library])],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-3000:]
        return folders[library]

    return write


@pytest.mark.parametrize(("library", "name"), CASES)
def test_packed_vectors_and_the_reference_are_those_of_the_library(written, library, name, tell):
    path = written(library) / name
    with np.load(path.parent / "vectors" / f"{name}.npz") as stored:
        theirs = dict(stored)
    weights = read(path)
    model = PackedESM2.from_fair_esm(weights.state, weights.geometry)
    ours = embed(model, [*theirs])
    assert_residues_equal(ours, [*theirs.values()])
    reference = Reference(path)
    assert_residues_equal([reference.residues(s) for s in theirs], [*theirs.values()])
    version = library.removeprefix("transformers-")
    expected = WRITERS[library][1][name].replace("several", "7" if "4.30" in library else "5")
    expected = expected.split("{}")
    assert all(part in weights.layout for part in expected), weights.layout
    assert len(expected) == 1 or f"transformers {version}." in weights.layout


HEADS = [
    (library, name)
    for library, name in CASES
    if library != "lightning" and name in ("masked_lm", "pickled", "pickled_shards")
]


@pytest.mark.parametrize(("library", "name"), HEADS)
def test_what_both_heads_say_is_what_the_library_says(written, library, name):
    path = written(library) / name
    with np.load(path.parent / "heads" / f"{name}.npz") as stored:
        theirs = dict(stored)
    needed = needs(["logits", "contacts"])
    record = prepare(str(path), "auto", needed)
    model = load_model(record, torch.float32, torch.device("cpu"), needed)
    of_logits = {key.partition(" ")[2]: x for key, x in theirs.items() if key[0] == "l"}
    hidden, contacts = forward(model, [*of_logits])
    lengths = [len(sequence) + 2 for sequence in of_logits]
    said = model.language_head(hidden, model.embed_tokens.weight).split(lengths)
    assert_residues_equal([x[1:-1].numpy() for x in said], [*of_logits.values()])
    assert furthest(contacts, [theirs[f"contacts {s}"] for s in of_logits]) <= FLOAT32


@pytest.mark.parametrize("changed", ["adapter", "settings", "base"])
def test_an_adapter_is_recorded_with_its_base_and_any_change_is_noticed(written, changed, tmp_path):
    folder = written("transformers-5.24") / "lora"
    record = prepare(str(folder), "auto")
    assert record.base == str(folder.parent / "base of adapters")
    names = {
        "adapter": folder / "adapter_model.safetensors",
        "settings": folder / "adapter_config.json",
        "base": Path(record.base) / "model.safetensors",
    }
    assert {*names.values()} < {*record.files()}
    file = names[changed]
    content = file.read_bytes()
    try:
        file.write_bytes(content.replace(b'"lora_alpha": 7', b'"lora_alpha": 6'))
        if changed != "settings":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert prepare(str(folder), "auto").sha256 != record.sha256
    finally:
        file.write_bytes(content)


def test_an_adapter_goes_the_whole_way(written, tmp_path, capsys):
    folder = written("transformers-5.24") / "lora"
    (tmp_path / "in.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n>b\nMKV\n")
    command = ["embed", str(tmp_path / "in.fasta"), "-o", str(tmp_path / "out")]
    assert main([*command, "--model", str(folder)]) == 0, capsys.readouterr().err
    report = (tmp_path / "out" / "report.html").read_text()
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert "LoRA of rank 4" in report and "LoRA of rank 4" in manifest


def test_a_training_that_pickled_objects_is_refused_with_what_to_do(written):
    path = written("lightning") / "lightning_with_objects.ckpt"
    with pytest.raises(UserError, match=r"types\.SimpleNamespace.*checkpoint\['state_dict'\]"):
        prepare(str(path), "auto")
    content = torch.load(path, weights_only=False)
    torch.save(content["state_dict"], path.with_name("as advised.pt"))
    assert read(path.with_name("as advised.pt")).geometry.heads == 2
