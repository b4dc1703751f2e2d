"""Models in int8: how close to fair-esm, with outliers and without, and what they are made of."""

from itertools import product

import numpy as np
import pytest
import torch

from packedesm.esm2 import int8, kernels
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.contacts import ContactHead, Contacts, Taps
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.int8 import Int8Linear
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.quantise import LocalError, Measured, measure, quantise, unavailable_reason
from packedesm.esm2.registry import DEMO, MODELS, locate
from packedesm.esm2.residual import PRODUCTS
from packedesm.esm2.ways import Product
from packedesm.reference.model import Reference
from packedesm.sequences.fasta import read_records
from tests.esm2.test_equivalence import ALPHABET, assert_pooled_close, protein, relative_l2
from tests.esm2.test_kernels import HERE

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.cpu,
    pytest.mark.skipif(HERE not in int8._LIBRARIES, reason=f"no kernel is for {HERE}"),
]
CPU = torch.device("cpu")
HAS_BFLOAT16 = kernels.unavailable_reason(CPU, torch.bfloat16, 16) is None


def pack(sequences):
    """Return what the forward pass takes, by the fastest attention."""
    tokens = [torch.tensor([0, *ALPHABET.encode(sequence), 2]) for sequence in sequences]
    lengths = [len(sequence) for sequence in tokens]
    return {
        "input_ids": torch.cat(tokens),
        "positions": torch.cat([torch.arange(length) for length in lengths]),
        "cu_seqlens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "max_seqlen": max(lengths),
        "attention": "varlen_cpu",
        "lengths": lengths,
    }


def embed(model, sequences):
    inputs = pack(sequences)
    found = model.forward_packed(**inputs).split(inputs["lengths"])
    return [part[1:-1].numpy() for part in found]


def better(errors):
    return Measured(errors, torch.empty(0)).ways


class Case:
    """A checkpoint, some proteins, and what fair-esm makes of them."""

    def __init__(self, path, sequences, sample):
        self.geometry, self.state = load_state(path)
        self.sequences, self.sample = sequences, sample
        self.expected = [Reference(path).residues(sequence) for sequence in sequences]

    def model(self, state=None):
        return PackedESM2.from_fair_esm(state or self.state, self.geometry)

    def errors(self, model):
        return measure(model, pack(self.sample)).errors

    def quantised(self, keep_float=()):
        model = self.model()
        return quantise(model, better(self.errors(model)), keep_float)


@pytest.fixture(scope="module")
def short(uniprot_500):
    found = [record.sequence for record in read_records(uniprot_500)]
    return [x.decode() if isinstance(x, bytes) else x for x in found if len(x) < 200]


@pytest.fixture(scope="module")
def demo(short):
    return Case(locate(DEMO), short[:6], short[6:8])


@pytest.fixture(scope="module")
def random(short, tmp_path_factory):
    path = tmp_path_factory.mktemp("random") / "8M.pt"
    write_random_checkpoint(path, MODELS["esm2_t6_8M_UR50D"], seed=2)
    return Case(path, short[:4], short[6:8])


@pytest.fixture(params=["demo", "random"])
def case(request):
    return request.getfixturevalue(request.param)


def test_mean_vectors_are_those_of_fair_esm(case):
    assert_pooled_close(embed(case.quantised(), case.sequences), case.expected)


def with_outliers(state, geometry):
    """Return the weights of the same function, some of whose channels are 30 or 100 times as large.

    Of LayerNorms, as real ESM-2 has them, and of values.
    """
    state = {name: x.float().clone() for name, x in state.items()}
    factors = torch.ones(geometry.width)
    factors[3::97], factors[50::131] = 30, 100
    for layer in (f"layers.{n}." for n in range(geometry.layers)):
        attention = f"{layer}self_attn."
        readers = [f"{attention}{x}_proj" for x in "qkv"]
        for written, read in (
            (f"{layer}self_attn_layer_norm", readers),
            (f"{layer}final_layer_norm", [f"{layer}fc1"]),
            (f"{attention}v_proj", [f"{attention}out_proj"]),
        ):
            for kind in ("weight", "bias"):
                x = state[f"{written}.{kind}"]
                x *= factors[:, None] if x.ndim == 2 else factors
            for name in read:
                state[f"{name}.weight"] /= factors
    return state


def test_outlier_channels_leave_the_vectors_within_the_bar(case):
    state = with_outliers(case.state, case.geometry)
    model = case.model(state)
    errors = case.errors(model)
    found = embed(quantise(model, better(errors)), case.sequences)
    assert_pooled_close(found, case.expected)
    # Without smoothing they would not be: that is what it is for.
    plain = {name: error._replace(smoothed=error.plain) for name, error in errors.items()}
    with pytest.raises(AssertionError, match="record"):
        assert_pooled_close(
            embed(quantise(case.model(state), better(plain)), case.sequences), case.expected
        )


def test_local_errors_are_of_every_product_and_tell_the_better_way(demo):
    model = demo.model(with_outliers(demo.state, demo.geometry))
    found = demo.errors(model)
    assert [*found] == [*map(Product._make, product(range(demo.geometry.layers), PRODUCTS))]
    for name, error in found.items():
        layer = getattr(model.layers[name.layer], name.kind)
        plain, smoothed = error
        assert plain.smoothing is None and smoothed.smoothing.shape == (layer.in_features,)
        assert error.better == min(error, key=lambda way: way.error)
        assert error.better.error < 0.05
        if name.kind in ("qkv", "fc1"):
            assert plain.error > 3 * smoothed.error


def test_the_mean_error_of_the_sample_is_taken_off_the_bias(random):
    """It would add up over layers, and no mean over residues would take it away."""
    model = random.model()
    errors = random.errors(model)
    biased = {
        name: LocalError(
            *(way._replace(bias=getattr(model.layers[name.layer], name.kind).bias) for way in error)
        )
        for name, error in errors.items()
    }

    def error_of(chosen):
        found = embed(quantise(random.model(), better(chosen)), random.sequences)
        pairs = zip(found, random.expected, strict=True)
        return np.mean([relative_l2(ours.mean(0), theirs.mean(0)) for ours, theirs in pairs])

    assert error_of(errors) < 0.7 * error_of(biased)


def test_measuring_leaves_the_model_as_it_was(demo):
    model = demo.model()
    before = embed(model, demo.sequences[:1])
    demo.errors(model)
    assert np.array_equal(embed(model, demo.sequences[:1]), before)


@pytest.mark.parametrize(
    "keep", [("fc1",), ("fc2",), ("qkv", "attention_out"), PRODUCTS], ids="+".join
)
def test_products_that_are_kept_are_float_and_the_others_have_no_float_weights(demo, keep):
    model = demo.quantised(keep)
    dtype = torch.bfloat16 if HAS_BFLOAT16 else torch.float32
    assert model.mixed == dtype
    for layer in model.layers:
        for kind in PRODUCTS:
            part = getattr(layer, kind)
            assert isinstance(part, Int8Linear) == (kind not in keep)
            if kind in keep:
                assert part.weight.dtype == dtype
            else:
                assert not [*part.parameters()]
                assert sum(x.nbytes for x in part.buffers()) <= 1.2 * part.panels.nbytes
    found = embed(model, demo.sequences)
    assert found[0].dtype == np.float32
    assert_pooled_close(found, demo.expected)


def test_a_product_of_one_layer_may_be_kept(demo):
    model = demo.quantised(lambda name: name == Product(2, "fc2"))
    kept = [n for n, layer in enumerate(model.layers) if not isinstance(layer.fc2, Int8Linear)]
    assert kept == [2]
    assert_pooled_close(embed(model, demo.sequences), demo.expected)


def test_a_protein_has_one_result_alone_in_any_pack_and_with_any_threads(demo):
    model, sequences = demo.quantised(), [*demo.sequences[:2], protein(40), protein(7)]
    together = embed(model, sequences)
    for i, sequence in enumerate(sequences):
        assert np.array_equal(embed(model, [sequence])[0], together[i])
    torch.set_num_threads(5)  # `one_thread` sets it back
    again = embed(model, sequences[::-1])[::-1]
    assert all(np.array_equal(*pair) for pair in zip(again, together, strict=True))


def test_what_looks_on_sees_layers_in_float32_and_contacts(demo):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(demo.geometry.layers, demo.geometry.heads, generator=generator) / 4
    head, inputs = ContactHead(weight, torch.zeros(1)), pack(demo.sequences[:2])

    def look(model):
        layers, contacts = [], Contacts(head, inputs["lengths"])
        taps = Taps(lambda number, x: layers.append(x.clone()), contacts)
        model.forward_packed(**inputs, taps=taps)
        return layers, contacts.probabilities()

    (exact, expected), (found, probabilities) = look(demo.model()), look(demo.quantised())
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()
    assert (probabilities - expected).abs().max() <= 0.02


def test_models_that_cannot_be_made_int8_are_refused(demo):
    model = demo.model()
    errors = demo.errors(model)
    with pytest.raises(ValueError, match="already"):
        quantise(quantise(model, better(errors)), better(errors))
    with pytest.raises(ValueError, match="cannot be told"):
        model.fair_esm_state()
    half = demo.model().bfloat16()
    assert "float32 weights" in unavailable_reason(half)
    with pytest.raises(RuntimeError, match="not bfloat16"):
        quantise(half, better(errors))
