"""A model that is kept: what it computes, how it trains, and that it costs little to call."""

import copy
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import packedesm
from packedesm.embedding.pooling import pool
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.registry import MODELS, TINY
from packedesm.notebook.check import PROTEINS
from packedesm.progress import telling
from packedesm.reference.model import Reference
from tests.fair_esm_says import write_model
from tests.sharp import GEOMETRY, computing_wrong, write_large, write_sharp

SEQUENCES = list(PROTEINS.values())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.pt"
    write_random_checkpoint(path, GEOMETRY, seed=3)
    return path


@pytest.fixture
def model(path) -> packedesm.EmbeddingModel:
    """A small untrained model of this test's own."""
    return packedesm.load_model(path, device="cpu", check=False)


def test_gradients_are_those_of_padded_fair_esm(tmp_path):
    # A head of 32 numbers is what the CPU's own attention is for, which has no gradients.
    geometry = Geometry(layers=3, width=64, heads=2)
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, geometry, seed=3)
    model = packedesm.load_model(path, device="cpu", check=False)
    weights = torch.linspace(-1, 1, geometry.width)
    model.requires_grad_()
    batch = packedesm.pack(SEQUENCES)
    hidden = model.forward_packed(batch)
    pooled = pool(hidden, batch, ["mean"], "float32")["mean"]
    (pooled * weights).square().sum().backward()

    fair = Reference(path)._model.requires_grad_()
    tokens = fair.alphabet.get_batch_converter()([("", text) for text in SEQUENCES])[2]
    found = fair(tokens, repr_layers=[geometry.layers])["representations"][geometry.layers]
    means = [found[i, 1 : len(text) + 1].mean(0) for i, text in enumerate(SEQUENCES)]
    loss = (torch.stack(means) * weights).square().sum()
    loss.backward()
    expected = {name: p.grad for name, p in fair.named_parameters() if p.grad is not None}

    # Gradients by fair-esm's names: they are put in the place of the weights.
    holder = copy.deepcopy(model.esm2)
    for kept, parameter in zip(holder.parameters(), model.esm2.parameters(), strict=True):
        kept.data = parameter.grad
    compared = 0
    for name, gradient in holder.fair_esm_state().items():
        if name in expected:
            scale = expected[name].norm()
            if scale > 1e-6:  # those of k's bias are zero but for rounding
                assert (gradient - expected[name]).norm() <= 1e-4 * scale, name
                compared += 1
    assert compared > 40


def test_a_head_trains_on_packs_and_the_body_if_it_is_let(model):
    head = torch.nn.Linear(GEOMETRY.width, 1)
    batch, target = packedesm.pack(SEQUENCES), torch.tensor([[0.0], [1.0], [0.5]])
    before = model.embed(SEQUENCES).array().copy()

    def losses(parameters, steps=40):
        optimiser = torch.optim.Adam(parameters, lr=0.01)
        found = []
        for _ in range(steps):
            mean = pool(model(batch), batch, ["mean"], "float32")["mean"]
            loss = (head(mean) - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    found = losses(head.parameters())
    assert found[-1] < 0.5 * found[0]
    assert np.array_equal(model.embed(SEQUENCES).array(), before)
    model.requires_grad_()
    losses([*head.parameters(), *model.parameters()], steps=5)
    after = model.embed(SEQUENCES).array()
    assert not np.allclose(after, before, atol=1e-3)
    with torch.no_grad():
        mean = pool(model(batch), batch, ["mean"], "float32")["mean"]
    np.testing.assert_allclose(after, mean.numpy(), atol=1e-5)


def test_it_moves_as_any_module_and_is_embedded_with_as_it_is_now(model):
    expected = model.embed(SEQUENCES).array().copy()
    assert model.to(torch.bfloat16) is model
    found = model.embed(SEQUENCES)
    assert (found.manifest["dtype"], found.array().dtype) == ("bfloat16", np.float16)
    assert 0 < np.abs(found.array(copy=True) - expected).max() < 0.2
    assert model.forward_packed(packedesm.pack(SEQUENCES)).dtype == torch.bfloat16
    assert "esm2.layers.0.qkv.weight" in model.state_dict()
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_that_is_cast_says_what_it_said(tmp_path):
    path = write_model(tmp_path, Geometry(layers=2, width=64, heads=4))
    model, asked = packedesm.load_model(path, device="cpu", check=False), ("logits", "contacts")
    before = model.embed(SEQUENCES, asked, output_dtype="float32")
    after = model.bfloat16().embed(SEQUENCES, asked, output_dtype="float32")
    for name, most in (("logits", 0.03), ("contacts", 0.05)):
        expected = before.array(name)
        assert np.linalg.norm(after.array(name) - expected) <= most * np.linalg.norm(expected)


def test_float32_is_read_again_unless_the_weights_are_others(model):
    exact = {name: tensor.clone() for name, tensor in model.esm2.state_dict().items()}
    model.to(torch.float16)
    again = model.in_float32(CPU).state_dict()
    assert all(torch.equal(again[name], exact[name]) for name in exact)
    with torch.no_grad():
        model.esm2.final_norm.bias += 1
    changed = model.in_float32(CPU)
    assert changed.final_norm.bias.dtype == torch.float32
    assert torch.equal(changed.final_norm.bias, model.esm2.final_norm.bias.float())
    assert model.dtype == torch.float16


def test_what_is_gone_from_the_disk_is_still_there(model, tmp_path):
    own = tmp_path / "own.pt"
    write_random_checkpoint(own, GEOMETRY, seed=4)
    kept = packedesm.load_model(own, dtype="float16", device="cpu", check=False)
    own.unlink()
    assert kept.in_float32(CPU).embed_tokens.weight.dtype == torch.float32


def test_what_half_precision_cannot_hold_is_computed_in_float32_and_flagged(tmp_path):
    large = write_large(tmp_path / "large.pt")
    exact = packedesm.embed(SEQUENCES, large, device="cpu", check=False, output_dtype="float32")
    half = packedesm.load_model(large, dtype="float16", device="cpu", check=False)
    found = half.embed([*SEQUENCES, SEQUENCES[0]], output_dtype="float32")
    assert found.index["flags"].tolist() == ["float32"] * 4
    np.testing.assert_allclose(found.array()[:3], exact.array(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(found.array()[0], found.array()[3])


def test_a_number_format_that_the_weights_do_not_bear_is_told(tmp_path):
    sharp = write_sharp(tmp_path / "sharp.pt", 32)
    packedesm.load_model(sharp, device="cpu")
    with pytest.raises(packedesm.UserError, match=r"bfloat16 misses the first check .*say dtype"):
        packedesm.load_model(sharp, dtype="bfloat16", device="cpu")
    packedesm.load_model(sharp, dtype="bfloat16", device="cpu", check=False)


def test_a_device_that_computes_wrong_is_told(path):
    with computing_wrong(), pytest.raises(packedesm.Fault, match="float32 misses the first check"):
        packedesm.load_model(path, device="cpu")
    with computing_wrong():
        packedesm.load_model(path, device="cpu", check=False)


def test_where_memory_does_not_hold_the_reference_it_is_said(path, monkeypatch, caplog):
    monkeypatch.setattr("packedesm.notebook.check.available_bytes", lambda: 1000)
    packedesm.load_model(path, device="cpu")
    assert "is not compared with fair-esm" in caplog.text


def test_vectors_are_those_of_fair_esm(model, path):
    reference = Reference(path)
    found = model.embed(SEQUENCES, "residue")
    for row, sequence in enumerate(SEQUENCES):
        expected = reference.representation(sequence)[1:-1]
        error = np.linalg.norm(found.residues(row) - expected) / np.linalg.norm(expected)
        assert error < 5e-6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "esm2_t9"}, "is neither a name nor a file"),
        ({"device": "tpu"}, "device: 'tpu' is none"),
        ({"device": "mps"}, "device: mps is neither a CPU nor an NVIDIA GPU"),
        ({"dtype": "int4"}, "dtype: 'int4' is not allowed; give one of auto, float32"),
        ({"attention": "fa3"}, "'fa3' cannot be used: it needs an NVIDIA GPU"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(keys, message):
    with pytest.raises(packedesm.UserError, match=message):
        packedesm.load_model(**{"device": "cpu", **keys})


def test_the_last_model_is_kept_until_its_file_changes(tmp_path):
    from packedesm.notebook.embed import _kept

    own = tmp_path / "own.pt"
    write_random_checkpoint(own, GEOMETRY, seed=4)
    keys = {"model": own, "device": "cpu", "check": False}
    first = packedesm.embed(["MKT"], **keys).array().copy()
    kept = _kept._model
    assert np.array_equal(packedesm.embed(["MKT"], **keys).array(), first)
    assert _kept._model is kept
    write_random_checkpoint(own, GEOMETRY, seed=5)
    assert not np.array_equal(packedesm.embed(["MKT"], **keys).array(), first)
    assert np.array_equal(packedesm.embed(["MKT"], kept).array(), first)
    with pytest.raises(packedesm.UserError, match="device are of a model that is to be loaded"):
        packedesm.embed(["MKT"], kept, device="cpu")
    with pytest.raises(packedesm.UserError, match=r"embed\(\) takes no 'devise'"):
        packedesm.embed(["MKT"], "no_such_model", devise="cpu")


def test_threads_may_share_a_model(model):
    expected = model.embed(SEQUENCES).array()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: model.embed(SEQUENCES).array(), range(12)))
    assert all(np.array_equal(array, expected) for array in found)


def test_progress_is_told_to_whoever_asks(model):
    told: list[int] = []
    model.embed(SEQUENCES, progress=told.append, token_budget=64)
    assert told[0] == 0
    assert told[-1] == sum(map(len, SEQUENCES))
    assert told == sorted(told)
    with telling(told.append):
        model.embed(["MKT"], progress=False)
    assert told[-1] == sum(map(len, SEQUENCES))


TEN = [text[start : start + 15] for text in SEQUENCES[1:] for start in range(0, 30, 6)]


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def _cpu_seconds(call, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - start) / times


def test_a_thousand_calls_leak_nothing_and_cost_little_more_than_the_pass(checkpoints, tell):
    model = packedesm.load_model(TINY, device="cpu", checkpoints=checkpoints, check=False)
    assert MODELS[TINY] == model.geometry
    call, batch = partial(model.embed, TEN), packedesm.pack(TEN)
    forward = torch.inference_mode()(partial(model.forward_packed, batch))
    _cpu_seconds(call, 100), _cpu_seconds(forward, 1)
    memory, tensors, threads = _resident(), _tensors(), {*threading.enumerate()}
    # By turns: what others do on these cores makes both slower, so the least of each counts.
    turns = [(_cpu_seconds(call, 10), _cpu_seconds(forward, 3)) for _ in range(100)]
    grown, left = _resident() - memory, _tensors() - tensors
    called, passed = map(min, zip(*turns, strict=True))
    tell(
        f"a call with ten proteins: {1000 * called:.2f} ms of CPU, of which the forward pass "
        f"{1000 * passed:.2f} ms; a thousand calls took {grown / 2**20:.1f} MiB"
    )
    assert left == 0
    assert not {*threading.enumerate()} - threads
    assert grown < 8 << 20
    assert called - passed < 0.015  # three times of what is promised: cores are shared here


def test_a_head_that_there_is_not_is_refused_by_its_name(demo):
    with pytest.raises(packedesm.UserError, match="'nope' is none of language head, contact head"):
        demo.load_heads("nope")


@pytest.mark.parametrize(
    ("outputs", "dtype", "message"),
    [
        (["nope"], "float32", "makes no 'nope'; give some of mean, cls"),
        ("mean", "float32", r"give \['mean'\]"),
        (["mean"], "f32", "no number format 'f32'; give the name of one: float32"),
        (["mean"], "int32", "no number format 'int32'"),
        (["mean"], torch.float32, r"no number format 'torch\.float32'; give the name"),
    ],
)
def test_pool_refuses_what_it_does_not_make(demo, outputs, dtype, message):
    batch = packedesm.pack(["MKT"])
    hidden = demo.forward_packed(batch)
    with pytest.raises(packedesm.UserError, match=message):
        packedesm.pool(hidden, batch, outputs, dtype)


def test_pool_takes_the_vectors_of_this_pack_alone(demo):
    batch, other = packedesm.pack(["MKT"]), packedesm.pack(["MKTAYIAKQR"])
    hidden = demo(batch)
    given = [
        (demo(other), batch, r"of shape \(12, 192\), and the pack has 5 tokens; give .* very pack"),
        (hidden, other, r"of shape \(5, 192\), and the pack has 12 tokens"),
        (hidden[None], batch, r"of shape \(1, 5, 192\)"),
        (hidden.numpy(), batch, "hidden is of type ndarray, not a tensor"),
        (hidden, ["MKT"], "batch is of type list, not a pack"),
        (hidden.to("meta"), batch, r"on meta, the pack on cpu; give batch\.to\(hidden\.device\)"),
    ]
    for vectors, pack, message in given:
        with pytest.raises(packedesm.UserError, match=message):
            packedesm.pool(vectors, pack, ["mean"], "float32")


@pytest.mark.parametrize("given", ["MKT", ["MKT"], torch.zeros(1, 5, dtype=torch.int32)])
def test_a_model_that_is_called_with_sequences_says_what_to_call(demo, given):
    with pytest.raises(packedesm.UserError, match=r"pack\(\[\.\.\.\]\), or call model\.embed"):
        demo(given)


def test_float64_is_kept_as_float32_unless_it_is_said_otherwise():
    model = packedesm.load_model(device="cpu", check=False)
    expected = model.embed(SEQUENCES).array("mean")
    found = model.double().embed(SEQUENCES)
    assert found.array("mean").dtype == np.float32
    np.testing.assert_allclose(found.array("mean"), expected, atol=1e-4)
    assert model.embed(SEQUENCES, output_dtype="float16").array("mean").dtype == np.float16
