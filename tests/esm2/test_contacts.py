"""Contacts of packed proteins equal those of fair-esm, unmodified, one protein at a time."""

from itertools import accumulate

import esm
import numpy as np
import pytest
import torch

from packedesm.esm2 import contacts as module
from packedesm.esm2.attention import select_backend
from packedesm.esm2.checkpoints import read
from packedesm.esm2.contacts import BYTES_PER_PAIR, ContactHead, Contacts, Taps
from packedesm.esm2.fair_esm import write_random_checkpoint, write_random_regression
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import PackedESM2
from packedesm.esm2.model_files import regression_file
from packedesm.esm2.registry import MODELS
from packedesm.outputs import CONTACT_HEAD

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.cpu]

FLOAT32 = 1e-5  # absolute, of a probability
BFLOAT16, FLOAT16 = 0.02, 0.006  # measured: 0.0077 and 0.0024
LIMIT = 1022
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
SMALL = Geometry(layers=3, width=64, heads=4)


@pytest.fixture(scope="module")
def cut(forty) -> list[str]:
    """Forty records spread over the lengths, cut at 1,022."""
    return [sequence[:LIMIT] for sequence in forty.values()]


class Pair:
    """A model of random weights with a random regression, in fair-esm and here."""

    def __init__(self, folder, geometry, sharpness=1.0):
        path = folder / "esm2_random.pt"
        write_random_checkpoint(path, geometry, seed=1)
        write_random_regression(regression_file(path), geometry, seed=2)
        content = torch.load(path, weights_only=False)  # this very test has written it
        for name, tensor in content["model"].items():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                tensor.mul_(sharpness**0.5)
        torch.save(content, path)
        regression = torch.load(regression_file(path), weights_only=True)
        load = esm.pretrained.load_model_and_alphabet_core
        self.reference = load(path.stem, content, regression)[0].eval()
        self.known = {}
        self.weights = read(path, None, {CONTACT_HEAD}, regression_file(path))

    def ours(self, dtype=torch.float32) -> PackedESM2:
        weights = self.weights
        return PackedESM2.from_fair_esm(
            weights.state, weights.geometry, dtype, "cpu", weights.heads
        )

    @torch.inference_mode()
    def expected(self, sequence) -> np.ndarray:
        if sequence not in self.known:
            tokens = torch.tensor([[0, *ALPHABET.encode(sequence), 2]])
            self.known[sequence] = self.reference.predict_contacts(tokens)[0].numpy()
        return self.known[sequence]

    def exact(self, sequences) -> list[np.ndarray]:
        """Return what fair-esm says in float64, whose rounding is nothing beside float32's."""
        self.known = {}
        self.reference.double()
        return [self.expected(sequence) for sequence in sequences]


class Plain:
    """The 8M geometry, and what fair-esm says of forty proteins with it."""

    def __init__(self, eight_million, sequences) -> None:
        path = eight_million.path
        self.weights = read(path, None, {CONTACT_HEAD}, regression_file(path))
        said = (eight_million.said(place)["contacts"][0] for place in range(len(sequences)))
        self.known = dict(zip(sequences, (found.numpy() for found in said), strict=True))

    ours = Pair.ours

    def expected(self, sequence) -> np.ndarray:
        return self.known[sequence]


@pytest.fixture(scope="module")
def plain(eight_million, cut):
    return Plain(eight_million, cut)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("small"), SMALL)


@torch.inference_mode()
def forward(model, sequences, attention="auto", *, ask=True):
    """Run one pack; return what the encoder says, and a triangle for each sequence."""
    weights = model.embed_tokens.weight
    backend = select_backend(attention, weights.device, weights.dtype, model.geometry.head_dim)
    tokens = [torch.tensor([0, *ALPHABET.encode(sequence), 2]) for sequence in sequences]
    lengths = [len(sequence) for sequence in tokens]
    contacts = Contacts(model.contact_head, lengths) if ask else None
    hidden = model.forward_packed(
        torch.cat(tokens),
        torch.cat([torch.arange(length) for length in lengths]),
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max(lengths),
        attention=backend.name,
        lengths=lengths,
        taps=Taps(contacts=contacts),
    )
    if contacts is None:
        return hidden, []
    pairs = [len(s) * (len(s) + 1) // 2 for s in sequences]
    return hidden, [x.numpy() for x in contacts.probabilities().split(pairs)]


def in_packs(model, sequences, attention="auto", records=10):
    found = []
    for first in range(0, len(sequences), records):
        found += forward(model, sequences[first : first + records], attention)[1]
    return found


def worst(pair, found, sequences) -> float:
    """Return the largest difference from fair-esm of any pair; whole matrices are compared."""
    return furthest(found, [pair.expected(sequence) for sequence in sequences])


def furthest(found, matrices) -> float:
    """Return the largest difference of triangles from matrices."""
    distances = []
    for triangle, expected in zip(found, matrices, strict=True):
        length = len(expected)
        assert triangle.shape == (length * (length + 1) // 2,)
        assert triangle.dtype == np.float32
        matrix = np.empty((length, length), np.float32)
        rows, columns = np.triu_indices(length)  # row by row
        matrix[rows, columns] = matrix[columns, rows] = triangle
        distances.append(np.abs(matrix - expected).max())
    return float(max(distances))


def test_forty_records_of_all_lengths_equal_fair_esm(plain, cut, tell):
    assert len(cut[-1]) == LIMIT
    found = in_packs(plain.ours(), cut)
    distance = worst(plain, found, cut)
    spread = np.concatenate(found).std()
    tell(f"contacts of forty records, 8M geometry: {distance:.1e} at most from fair-esm")
    assert distance <= FLOAT32
    assert spread > 0.02  # or any numbers would be equal


@pytest.mark.parametrize("sharpness", [2, 8])
def test_sharp_attention_is_no_further_off_than_fair_esm_is(tmp_path, cut, tell, sharpness):
    """Rounding decides where it looks, in fair-esm too: float64 tells which of both is right."""
    sharp, some = Pair(tmp_path, MODELS["esm2_t6_8M_UR50D"], sharpness), cut[:20:4]
    found = in_packs(sharp.ours(), some)
    theirs = [sharp.expected(sequence) for sequence in some]
    exact = sharp.exact(some)
    their_distance = max(np.abs(a - b).max() for a, b in zip(theirs, exact, strict=True))
    distance = furthest(found, exact)
    told = f"ours {distance:.1e}, fair-esm's {their_distance:.1e}"
    tell(f"contacts, attention {sharpness} times as sharp, from float64: {told}")
    assert np.concatenate(found).std() > 0.1
    assert distance <= max(FLOAT32, 3 * their_distance)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_the_shortest_proteins_equal_fair_esm(small, attention):
    sequences = ["M", "MK", "W", "MKV", "ACDEFGHIKLMNPQRSTVWYXBUZO"]
    found = in_packs(small.ours(), sequences, attention)
    assert worst(small, found, sequences) <= FLOAT32


def test_maps_in_blocks_are_those_at_once(small, monkeypatch):
    sequences = ["MKTAYIAKQRQISFVKSHFSRQ" * 3, "MK"]
    whole = in_packs(small.ours(), sequences)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 3 * 4 * 66 * 68)  # three of four heads, then one
    blocks = in_packs(small.ours(), sequences)
    assert worst(small, blocks, sequences) <= FLOAT32
    assert all(np.abs(a - b).max() <= 1e-6 for a, b in zip(whole, blocks, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_who_asks_for_contacts_changes_no_other_bit(small, attention, dtype):
    model, sequences = small.ours(dtype), ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "W" * 40]
    asked, found = forward(model, sequences, attention)
    assert torch.equal(asked, forward(model, sequences, attention, ask=False)[0])
    again = forward(model, sequences, attention)[1]
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_protein_has_the_contacts_that_it_has_alone(small):
    model, sequences = small.ours(), ["MKTAYIAKQRQISFVKSHFSRQ", "MKV", "W" * 40]
    together = forward(model, sequences)[1]
    for sequence, found in zip(sequences, together, strict=True):
        alone = forward(model, [sequence])[1][0]
        assert np.abs(found - alone).max() <= 1e-6


def test_half_precision_is_close(plain, cut, tell):
    some = cut[:36:6]
    for dtype, most in ((torch.bfloat16, BFLOAT16), (torch.float16, FLOAT16)):
        distance = worst(plain, in_packs(plain.ours(dtype), some), some)
        tell(f"contacts in {dtype}, 8M geometry: {distance:.1e} at most from fair-esm")
        assert distance <= most


def test_a_head_that_looks_at_no_residue_adds_nothing():
    """Where fair-esm divides zero by zero: all of the attention goes to <cls>."""
    head = ContactHead(torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
    contacts = Contacts(head, [4])
    k = torch.zeros(4, 2, 8)
    k[0] = 1e4
    contacts.add(0, torch.ones(4, 2, 8), k)
    assert torch.allclose(contacts.probabilities(), torch.sigmoid(torch.full((3,), 0.5)))


def test_the_maps_of_a_long_protein_take_tens_of_megabytes():
    """Those of the 3B model at 1,022 residues would be 6 GB: a layer takes what all of them do."""
    most = [measured_bytes(layers, heads=40, head_dim=64, residues=[LIMIT]) for layers in (1, 3)]
    assert most[0] == most[1] < 70e6


def test_what_is_kept_of_a_pack_is_what_the_choice_of_packs_counts():
    residues = [200] * 30
    most = measured_bytes(layers=1, heads=2, head_dim=4, residues=residues)
    assert most < BYTES_PER_PAIR * sum(length**2 for length in residues)


def measured_bytes(layers, heads, head_dim, residues: list[int]) -> int:
    """Return the most memory that tensors take while maps are added, beside `q` and `k`."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from tests.fake_cuda.memory import LiveMemory

    live, lengths = LiveMemory(), [length + 2 for length in residues]

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, operator, _types, arguments=(), options=None):
            result = operator(*arguments, **(options or {}))
            if not operator.is_view:
                live.note([x for x in tree_leaves(result) if isinstance(x, torch.Tensor)])
            return result

    with FakeTensorMode(), torch.no_grad():
        head = ContactHead(torch.empty(layers, heads), torch.empty(1))
        q, k = torch.empty(2, sum(lengths), heads, head_dim).unbind()
        with Noting():
            contacts = Contacts(head, lengths)
            for layer in range(layers):
                contacts.add(layer, q, k)
            contacts.probabilities()
    return live.most
