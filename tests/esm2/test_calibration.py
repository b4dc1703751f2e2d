"""How products are made int8 is found out once: what is kept gives the same bits."""

import pytest
import torch

from packedesm.esm2 import calibration, int8, int8_model, kernels
from packedesm.esm2.calibration import read_calibration, write_calibration
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.quantise import quantise
from packedesm.esm2.registry import DEMO, locate
from tests.esm2.test_kernels import HERE

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(HERE not in int8._LIBRARIES, reason=f"no kernel is for {HERE}"),
]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "packedesm" / "int8"


@pytest.fixture(scope="module")
def weights():
    return load_state(locate(DEMO))


@pytest.fixture
def measured(monkeypatch):
    """Return how often a model was measured, as a list that grows."""
    measure, calls = int8_model.measure, []

    def watched(*arguments):
        calls.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(int8_model, "measure", watched)
    return calls


def made(weights, digest="abc", settled=None):
    """Return all numbers of the products of a model, by name."""
    geometry, state = weights
    load = lambda: PackedESM2.from_fair_esm(state, geometry)  # noqa: E731
    model = int8_model.int8_model(load, settled, digest)
    return {name: x for name, x in model.named_buffers() if "." in name} | {
        name: x for name, x in model.named_parameters() if name.endswith("bias")
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert any(name.endswith("panels") for name in found)
    for name, x in found.items():
        assert x is None or torch.equal(x, expected[name]), name


def test_what_is_remembered_gives_the_same_bits(weights, measured):
    first = made(weights)
    again = made(weights)
    assert len(measured) == 1
    assert_same(again, first)
    assert_same(again, made(weights, digest=None))  # found out anew
    assert len(measured) == 2


def test_kinds_that_were_settled_elsewhere_stay_float(weights, measured):
    fresh = made(weights, digest=None, settled=("fc2",))
    made(weights)
    assert_same(made(weights, settled=("fc2",)), fresh)
    assert len(measured) == 2


def test_kinds_that_did_not_bear_it_are_remembered(weights, measured, monkeypatch):
    with monkeypatch.context() as patch:
        without = lambda model, _load, found: quantise(model, found.ways, ("fc1",))  # noqa: E731
        patch.setattr(int8_model, "_chosen", without)
        first = made(weights)
    assert_same(made(weights), first)
    assert "layers.0.fc2.panels" in first and "layers.0.fc1.panels" not in first
    assert len(measured) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone", "of another version"])
def test_what_is_damaged_is_found_out_anew(weights, measured, cache_folder, damage):
    first = made(weights)
    (file,) = cache_folder.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "gone":
        file.unlink()
    else:
        tensors = calibration.safetensors.torch.save({"other": torch.zeros(2)})
        file.write_bytes(tensors + calibration.hashlib.sha256(tensors).digest())
    assert_same(made(weights), first)
    assert len(measured) == 2
    made(weights)  # and kept anew
    assert len(measured) == 2


def other_weights(monkeypatch):
    return "another"


def other_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99")


def other_instructions(monkeypatch):
    there = torch.backends.cpu.get_cpu_capability()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: f"not {there}")


def other_kernel(monkeypatch):
    monkeypatch.setattr(int8, "source_digest", lambda: "another")


def other_attention(monkeypatch):
    monkeypatch.setattr(kernels, "source_digest", lambda: "another")


def other_proteins(monkeypatch):
    monkeypatch.setattr(calibration, "PROTEINS", {"oxytocin": "CYIQNCPLG"})


OTHERS = [
    other_proteins,
    other_weights,
    other_torch,
    other_instructions,
    other_kernel,
    other_attention,
]


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_of_another_machine_or_of_other_weights_is_not_used(weights, monkeypatch, other):
    made(weights)
    digest, geometry = "abc", weights[0]
    assert read_calibration(digest, geometry) is not None
    dtype = kernels.float_dtype(geometry.head_dim)
    # It looks at the CPU, too; libraries that were loaded stay.
    monkeypatch.setattr(kernels, "float_dtype", lambda _: dtype)
    assert read_calibration(other(monkeypatch) or digest, geometry) is None


def test_a_folder_that_cannot_be_written_to_costs_only_time(weights, measured, cache_folder):
    cache_folder.parent.write_text("a file")
    assert_same(made(weights), made(weights))
    assert len(measured) == 2
    write_calibration("x", weights[0], calibration.Calibration({}, ()))  # no exception
