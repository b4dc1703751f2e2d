"""Packed vectors equal those of fair-esm, unmodified, float32, one protein at a time.

The bars come from what the project promises. They are never loosened: a miss has a cause.
"""

import gzip
import random

import esm
import numpy as np
import pytest
import torch

from packedesm.errors import UserError
from packedesm.esm2.attention import BACKENDS, select_backend
from packedesm.esm2.checkpoints import load_state
from packedesm.esm2.fair_esm import write_random_checkpoint
from packedesm.esm2.fused import select_kernels
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.registry import MODELS
from packedesm.esm2.steps import KERNELS
from packedesm.esm2.tensor_files import load_archive
from packedesm.reference.model import Reference
from tests.fair_esm_says import GEOMETRY_8M

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.cpu]

FLOAT32_RESIDUE = 5e-6  # relative L2, of every residue's vector and so of every record
BFLOAT16_POOLED = 0.02  # relative L2
BFLOAT16_COSINE = 0.9995
LIMIT = 1022
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
RESIDUES = "LAGVSERTIDPKQNFYMHWC"


@pytest.fixture(scope="module")
def sequences(uniprot_500):
    """All 500 example records, cut at 1,022, in the order of the file."""
    with gzip.open(uniprot_500, "rt") as handle:
        records = handle.read().removeprefix(">").split("\n>")
    found = [record.partition("\n")[2].replace("\n", "")[:LIMIT] for record in records]
    assert len(found) == 500
    return found


class Pair:
    """A checkpoint's reference, and our model in any dtype."""

    def __init__(self, path):
        self.path = path
        self.reference = Reference(path)
        self.geometry, self.state = load_state(path)

    def ours(self, dtype):
        return PackedESM2.from_fair_esm(self.state, self.geometry, dtype)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    write_random_checkpoint(path, MODELS["esm2_tiny_random"], seed=1)
    return Pair(path)


def embed(model, sequences, attention="auto"):
    """Return the residues' representations of one pack, an array for each sequence."""
    weights = model.embed_tokens.weight
    backend = select_backend(attention, weights.device, weights.dtype, model.geometry.head_dim)
    tokens = [torch.tensor([0, *ALPHABET.encode(sequence), 2]) for sequence in sequences]
    lengths = [len(sequence) for sequence in tokens]
    found = model.forward_packed(
        torch.cat(tokens).to(weights.device),
        torch.cat([torch.arange(length) for length in lengths]).to(weights.device),
        torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=weights.device),
        max(lengths),
        attention=backend.name,
        lengths=lengths,
    )
    return [part[1:-1].float().cpu().numpy() for part in found.split(lengths)]


def embed_in_packs(model, sequences, records_per_pack=25):
    found = []
    for start in range(0, len(sequences), records_per_pack):
        found += embed(model, sequences[start : start + records_per_pack])
    return found


def relative_l2(found, expected):
    """Return the relative L2 distance along the last axis, in float64."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def assert_residues_equal(found, expected):
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == theirs.shape
        worst = relative_l2(ours, theirs).max()
        assert worst <= FLOAT32_RESIDUE, f"record {i}: {worst}"


def assert_pooled_close(found, expected):
    for i, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        ours, theirs = (x.astype(np.float64).mean(0) for x in (ours, theirs))
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        distance = relative_l2(ours, theirs)
        assert cosine >= BFLOAT16_COSINE, f"record {i}: cosine {cosine}"
        assert distance <= BFLOAT16_POOLED, f"record {i}: relative L2 {distance}"


@pytest.fixture(scope="module")
def places() -> list[int]:
    """Places of forty records among those of all lengths, which are sorted, in another order."""
    return random.Random(1).sample(range(40), 40)


@pytest.fixture(scope="module")
def mixed(forty, places) -> list[str]:
    """Forty records spread over the lengths, the shortest and the longest among them."""
    by_length = [sequence[:LIMIT] for sequence in forty.values()]
    return [by_length[place] for place in places]


def assert_equal(dtype, found, expected):
    """Compare every residue in float32, every mean in half precision."""
    (assert_residues_equal if dtype == torch.float32 else assert_pooled_close)(found, expected)


def check_tiny(tiny, sequences, records_per_pack):
    expected = [tiny.reference.residues(sequence) for sequence in sequences]
    for dtype in (torch.float32, torch.bfloat16):
        assert_equal(dtype, embed_in_packs(tiny.ours(dtype), sequences, records_per_pack), expected)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_example_record_with_the_tiny_model(tiny, sequences):
    check_tiny(tiny, sequences, 25)


def test_forty_example_records_with_the_tiny_model(tiny, mixed):
    check_tiny(tiny, mixed, 14)


@pytest.fixture(scope="module")
def pair_8m(eight_million):
    return Pair(eight_million.path)


@pytest.fixture(scope="module")
def mixed_expected(eight_million, places):
    said = (eight_million.said(place)["representations"] for place in places)
    return [layers[GEOMETRY_8M.layers][0, 1:-1].numpy() for layers in said]


# In bfloat16 half of them are compared in every run, with each backend, below.
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.exhaustive)]
)
def test_forty_example_records_at_the_true_8m_geometry(pair_8m, mixed, mixed_expected, dtype):
    assert_equal(dtype, embed_in_packs(pair_8m.ours(dtype), mixed, 8), mixed_expected)


def protein(length, seed=0):
    return "".join(random.Random(f"{length} {seed}").choices(RESIDUES, k=length))


@pytest.mark.parametrize("length", [1, 2, 3, 1021, 1022, 1023])
def test_extreme_lengths_alone_and_in_a_pack(tiny, length):
    model, sequence = tiny.ours(torch.float32), protein(length)
    expected = [tiny.reference.residues(sequence)]
    assert_residues_equal(embed(model, [sequence]), expected)
    assert_residues_equal(embed(model, [protein(40), sequence, protein(7)])[1:2], expected)


@pytest.mark.parametrize("place", range(5))
def test_a_protein_first_last_and_anywhere_in_a_pack(tiny, place):
    sequence, others = protein(150), [protein(n, seed=1) for n in (30, 150, 400, 5)]
    pack = [*others[:place], sequence, *others[place:]]
    expected = [tiny.reference.residues(each) for each in pack]
    assert_residues_equal(embed(tiny.ours(torch.float32), pack), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_residues_rescale_their_own_protein_only(tiny, dtype):
    pack = [
        protein(60),
        "<mask>" + protein(30) + "<mask><mask>" + protein(9) + "<mask>",
        protein(60, seed=1),
        "<mask>",
        "<mask>" * 20 + "M",
    ]
    expected = [tiny.reference.residues(each) for each in pack]
    found = embed(tiny.ours(dtype), pack)
    if dtype == torch.float32:
        assert_residues_equal(found, expected)
    else:
        assert_pooled_close(found, expected)


def test_every_letter_of_the_alphabet(tiny):
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
    expected = [tiny.reference.residues(letters)]
    assert_residues_equal(embed(tiny.ours(torch.float32), [letters]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", range(4))
def test_replacing_one_protein_leaves_the_others_bitwise_unchanged(tiny, dtype, place):
    pack = [protein(n) for n in (33, 300, 33, 33)]
    replaced = pack.copy()
    replaced[place] = "W" * len(pack[place])
    model = tiny.ours(dtype)
    before, after = embed(model, pack), embed(model, replaced)
    for i in range(len(pack)):
        assert np.array_equal(before[i], after[i]) == (i != place)


def test_rotary_frequencies_that_the_file_rounds_are_used_as_they_are(tiny, sequences):
    """Published checkpoints hold frequencies rounded to float16, and fair-esm loads them.

    Frequencies computed anew are right only where the file has none: then the vectors of a long
    protein leave the bar.
    """
    longest = max(sequences, key=len)
    expected = [tiny.reference.residues(longest)]
    without = {name: x for name, x in tiny.state.items() if "inv_freq" not in name}
    computed = PackedESM2.from_fair_esm(without, tiny.geometry)
    assert relative_l2(embed(computed, [longest])[0], expected[0]).max() > FLOAT32_RESIDUE
    assert_residues_equal(embed(tiny.ours(torch.float32), [longest]), expected)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_other_head_sizes(tmp_path, heads):
    path = tmp_path / "model.pt"
    write_random_checkpoint(path, Geometry(layers=2, width=48, heads=heads), seed=4)
    pair = Pair(path)
    pack = [protein(50), protein(300)]
    expected = [pair.reference.residues(each) for each in pack]
    assert_residues_equal(embed(pair.ours(torch.float32), pack), expected)


def test_half_precision_weights_in_the_file_are_used_in_float32(tmp_path, tiny):
    """The published 3B and 15B files hold float16; fair-esm computes with them in float32."""
    path = tmp_path / "half.pt"
    content = load_archive(tiny.path)
    content["model"] = {name: weight.half() for name, weight in content["model"].items()}
    torch.save(content, path)
    geometry, state = load_state(path)
    sequence = protein(200)
    found = embed(PackedESM2.from_fair_esm(state, geometry), [sequence])
    assert_residues_equal(found, [Reference(path).residues(sequence)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(
                    not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"
                ),
            ],
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", BACKENDS)
def test_every_backend_on_every_device(pair_8m, mixed, mixed_expected, device, dtype, attention):
    pair, place = pair_8m, torch.device(device)
    try:
        select_backend(attention, place, dtype, pair.geometry.head_dim)
    except UserError as error:
        pytest.skip(str(error))
    # Every second by length, the longest among them.
    half = sorted(range(len(mixed)), key=lambda i: len(mixed[i]), reverse=True)[::2]
    model = PackedESM2.from_fair_esm(pair.state, pair.geometry, dtype, device)
    for kernels in KERNELS:
        if select_kernels(pair.geometry, dtype, place, demanded=kernels).name != kernels:
            continue
        model.use_kernels(kernels)
        found = embed(model, [mixed[i] for i in half], attention)
        assert_equal(dtype, found, [mixed_expected[i] for i in half])
