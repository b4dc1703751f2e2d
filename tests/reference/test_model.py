"""The reference of long proteins: in bounded memory, and equal to fair-esm unmodified."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from esm import ESM2

from packedesm.alphabet import RESIDUES
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import MODELS
from packedesm.reference import blocked_attention
from packedesm.reference.memory import available_bytes
from packedesm.reference.model import DoesNotFitError, Reference

GEOMETRIES = {
    "tiny": Geometry(layers=3, width=32, heads=4),
    "one head": Geometry(layers=1, width=24, heads=1),
    "8M": MODELS["esm2_t6_8M_UR50D"],
}


def protein(length: int) -> str:
    letters = "".join(map(chr, RESIDUES)).replace("<", "")
    return "".join(random.Random(length).choices(letters, k=length))


@pytest.fixture(scope="module", params=GEOMETRIES)
def model(request, tmp_path_factory) -> Reference:
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_random_checkpoint(path, GEOMETRIES[request.param], seed=4)
    return Reference(path)


@pytest.mark.parametrize(
    "sequence",
    [
        *(protein(length) for length in (1, 2, 3, 33, 500, 1022)),
        "MKV<mask>A" + protein(100) + "<mask><mask>",
        pytest.param(protein(3000), marks=pytest.mark.exhaustive),
    ],
    ids=lambda sequence: f"{len(sequence)}",
)
def test_attention_in_blocks_is_that_of_fair_esm(model, sequence, monkeypatch):
    whole = model.representation(sequence)
    monkeypatch.setattr(blocked_attention, "WHOLE_BYTES", 0)
    monkeypatch.setattr(blocked_attention, "_BLOCK_BYTES", 1 << 16)  # many blocks
    blocks = model.representation(sequence)
    assert blocks.shape == whole.shape
    difference = np.linalg.norm(blocks - whole, axis=1) / np.linalg.norm(whole, axis=1)
    assert difference.max() <= 1e-6
    monkeypatch.undo()
    assert np.array_equal(model.representation(sequence), whole)  # nothing is left of it


@pytest.mark.parametrize(("whole_bytes", "dies"), [("1 << 28", False), ("1 << 50", True)])
def test_a_protein_whose_attention_has_gigabytes_takes_a_tenth_of_them(tmp_path, whole_bytes, dies):
    """8,000 residues and 20 heads: 5 GB of attention weights, several times."""
    write_random_checkpoint(tmp_path / "model.pt", Geometry(layers=1, width=40, heads=20), seed=1)
    code = f"""
import resource
from packedesm.reference import blocked_attention
from packedesm.reference.model import DoesNotFitError, Reference
blocked_attention.WHOLE_BYTES = {whole_bytes}
model = Reference({str(tmp_path / "model.pt")!r})
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    print(model.residues("MKVL" * 2000).shape)
except DoesNotFitError:
    print("does not fit")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == ("does not fit\n" if dies else "(8000, 40)\n"), done.stderr


def test_a_protein_takes_one_thread(model, monkeypatch):
    """Several wait for one another longer than they compute, and round otherwise."""
    taken, forward = [], ESM2.forward

    def watch(self, *arguments, **options):
        taken.append(torch.get_num_threads())
        return forward(self, *arguments, **options)

    monkeypatch.setattr(ESM2, "forward", watch)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model.representation("MKV")
        left = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert (taken, left) == ([1], 2)


def test_what_the_system_would_kill_is_not_begun(model, monkeypatch):
    assert 1e8 < available_bytes() < 1e14
    monkeypatch.setattr("packedesm.reference.memory.available_bytes", lambda: 1e4)
    with pytest.raises(DoesNotFitError):
        model.representation("MKV" * 100)
