"""fair-esm by several threads: the same bits, one thread each, memory for all, and an end."""

import subprocess
import sys
import threading
import time

import esm
import numpy as np
import pytest
import torch

from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.reference.memory import DoesNotFitError
from packedesm.reference.model import Reference
from packedesm.reference.threads import side_by_side

GEOMETRY = Geometry(layers=3, width=64, heads=4)
LENGTHS = (150, 7, 90, 333, 90, 41, 150, 260, 12, 200, 1)
SEQUENCES = ["".join(np.random.default_rng(n).choice([*"ACDEFGHIKLMNPQ"], n)) for n in LENGTHS]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "esm2_random.pt"
    write_random_checkpoint(path, GEOMETRY, seed=6)
    return path


@pytest.fixture(scope="module")
def reference(path) -> Reference:
    return Reference(path)


def vectors(reference: Reference, sequence: str) -> np.ndarray:
    return reference.representation(sequence)


def many(reference: Reference, threads: int, work=vectors, things=SEQUENCES) -> list:
    with side_by_side(reference, threads) as each:
        return [*each(work, things)]


@pytest.mark.parametrize("threads", [1, 4])
def test_each_protein_has_the_bits_of_fair_esm_alone(path, reference, threads, monkeypatch):
    content = torch.load(path, weights_only=False)  # this very test has written it
    with pytest.warns(UserWarning, match="Regression weights not found"):
        model = esm.pretrained.load_model_and_alphabet_core("esm2", content)[0].eval()
    convert = model.alphabet.get_batch_converter()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        expected = [
            model(convert([("", sequence)])[2], repr_layers=[3])["representations"][3][0].numpy()
            for sequence in SEQUENCES
        ]
    torch.set_num_threads(before)
    for _ in range(3):
        for found, truth in zip(many(reference, threads), expected, strict=True):
            assert np.array_equal(found, truth)


def test_a_long_protein_in_blocks_disturbs_no_other(reference, monkeypatch):
    monkeypatch.setattr(
        "packedesm.reference.blocked_attention.WHOLE_BYTES", 4 * GEOMETRY.heads * 100**2
    )
    monkeypatch.setattr("packedesm.reference.blocked_attention._BLOCK_BYTES", 1 << 16)
    alone = many(reference, 1)
    for _ in range(5):
        assert all(map(np.array_equal, many(reference, 4), alone))


def test_every_thread_has_one_of_torch(reference):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for threads in (1, 3):
            counts = many(reference, threads, lambda _reference, _x: torch.get_num_threads())
            assert set(counts) == {1}
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_weights_are_there_once(reference):
    twin = reference.twin(threading.Event())
    pairs = zip(reference._model.parameters(), twin._model.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert twin._model.layers[0] is not reference._model.layers[0]


def test_whoever_ends_early_waits_for_no_protein(reference):
    begun = []

    def work(reference: Reference, sequence: str) -> np.ndarray:
        begun.append(sequence)
        return reference.representation(sequence)

    long = "MKVLAAGIV" * 400
    with pytest.raises(KeyboardInterrupt), side_by_side(reference, 2) as each:
        found = each(work, ["MKVL", long, *[long] * 6])
        next(found)
        while len(begun) < 3:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert len(begun) <= 5
    stop = threading.Event()
    twin = reference.twin(stop)
    layers = []

    def stop_here(*_call: object) -> None:
        layers.append(1)
        stop.set()

    twin._model.layers[1].register_forward_pre_hook(stop_here)
    with pytest.raises(InterruptedError):
        twin.representation("MKVL")
    assert layers == [1]  # the one that was at work is done, and the third not begun


def test_passes_that_memory_does_not_hold_together_follow_one_another(reference, monkeypatch):
    size = (100 + 2) * GEOMETRY.width * 100
    monkeypatch.setattr("packedesm.reference.memory.available_bytes", lambda: 1.5 * size)
    at_work, most, lock = 0, 0, threading.Lock()
    forward = esm.ESM2.forward

    def counted(self, *arguments, **options):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.01)
        result = forward(self, *arguments, **options)
        with lock:
            at_work -= 1
        return result

    monkeypatch.setattr(esm.ESM2, "forward", counted)
    assert len(many(reference, 3, things=["A" * 100] * 9)) == 9
    assert most == 1
    assert len(many(reference, 3, things=["A" * 30] * 9)) == 9
    assert most > 1
    with pytest.raises(DoesNotFitError):
        many(reference, 3, things=["A" * 100, "A" * 200])


def test_memory_that_was_freed_and_kept_counts_as_there():
    code = """
import torch
from packedesm.device.memory import keep_freed_memory
from packedesm.reference.memory import Memory
from packedesm.reference import memory

keep_freed_memory()
torch.ones(1 << 28).sum()  # 1 GB, for a moment

def room():
    pages = int(open("/proc/self/statm").read().split()[1])
    return 1.2e9 - 4096 * pages

memory.available_bytes = room
kept = room() < 2e8
with Memory().holding(6e8):
    print(kept, room() > 6e8)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "True True\n", done.stderr


def test_no_weight_is_drawn_at_random(path, tmp_path):
    before = torch.get_rng_state()
    reference = Reference(path)
    assert torch.equal(torch.get_rng_state(), before)
    content = torch.load(path, weights_only=False)  # this very test has written it
    with pytest.warns(UserWarning, match="Regression weights not found"):
        model = esm.pretrained.load_model_and_alphabet_core("esm2", content)[0]
    found, expected = reference._model.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor) or name.startswith("contact_head"), name
