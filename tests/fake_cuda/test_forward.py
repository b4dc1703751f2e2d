"""The forward pass and pooling on the made-up GPU: they run, stay there and wait for nothing.

Fake tensors have shapes and no numbers. They do not see an index out of range, and `sdpa` takes
another way through torch than on a GPU.
"""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from packedesm.embedding import readout
from packedesm.embedding.pooling import pool
from packedesm.embedding.readout import Readout
from packedesm.esm2.attention import PREFERENCE, unavailable_reason
from packedesm.esm2.contacts import ContactHead, Contacts, Taps
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.heads import LanguageModelHead
from packedesm.esm2.model import KERNELS, PackedESM2
from packedesm.esm2.registry import DEMO, MODELS, TINY
from packedesm.outputs import OUTPUTS as EVERY
from packedesm.outputs import Array, array_names
from tests.fake_cuda.attention import install_stand_ins
from tests.fake_cuda.kernels import kernels_stood_in
from tests.fake_cuda.models import fake_model, fake_pack, whole
from tests.fake_cuda.observed import Watched
from tests.typed import embed_plan

PUBLISHED = {name: geometry for name, geometry in MODELS.items() if name not in (TINY, DEMO)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PACKS = {
    "plain": whole(61, 40, 1),
    "windows": [[(0, 50), (30, 80)], [(0, 9)]],
    "duplicates": whole(33, 33, 33),
}
EXTREMES = {"one": whole(1), "longest": whole(35_000)}
OUTPUTS = [["mean"], ["cls"], ["max"], ["residue"], ["mean", "cls", "max", "residue"]]
ARRAYS = array_names(EVERY, [0, "last"], 2)
OUTPUT_DTYPES = ["float16", "float32", "float16", "float32", "float16"]


@pytest.fixture
def hopper(monkeypatch, fake_cuda):
    """A made-up H100 with all optional libraries."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    install_stand_ins(monkeypatch)
    return fake_cuda


def fitting(geometry, dtype, device) -> list[str]:
    """Return the attention backends that take this model."""
    head_dim = geometry.head_dim
    return [x for x in PREFERENCE["cuda"] if not unavailable_reason(x, device, dtype, head_dim)]


def forward(model, batch, attention) -> torch.Tensor:
    """Run the model below what looks at each operator, and return the token vectors."""
    device, dtype = batch.input_ids.device, model.embed_tokens.weight.dtype
    width, tokens = model.geometry.width, sum(batch.lengths)
    with torch.no_grad(), Watched(device):
        hidden = model.forward_packed(**batch.inputs, attention=attention)
    assert (hidden.shape, hidden.dtype, hidden.device) == ((tokens, width), dtype, device)
    return hidden


def check_pool(hidden, batch, outputs, output_dtype, fused) -> None:
    """Pool, below what looks at each operator."""
    with torch.no_grad(), Watched(hidden.device):
        pooled = pool(hidden, batch, outputs, output_dtype, fused=fused)
    assert list(pooled) == outputs
    for output, vectors in pooled.items():
        number = int(batch.residues.sum()) if output == "residue" else len(batch.rows)
        assert vectors.shape == (number, hidden.shape[1])
        assert vectors.dtype == getattr(torch, output_dtype)
        assert vectors.device == hidden.device


def run(geometry, windows, device) -> None:
    """Run two layers: all are alike. What pooling sees is the same from all backends.

    Fused kernels give every backend the same views of q, k and v, so they run before one.
    """
    with FakeTensorMode(), kernels_stood_in():
        batches = [fake_pack(spans, device) for spans in windows]
        models = [fake_model(replace(geometry, layers=2), dtype, device) for dtype in DTYPES]
        for (dtype, model), kernels in product(zip(DTYPES, models, strict=True), KERNELS):
            model.use_kernels(kernels)
            backends = fitting(geometry, dtype, device)
            for batch in batches:
                for attention in backends[: 1 if model.fused else None]:
                    hidden = forward(model, batch, attention)
                for outputs, output_dtype in zip(OUTPUTS, OUTPUT_DTYPES, strict=True):
                    check_pool(hidden, batch, outputs, output_dtype, model.fused)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_contacts_wait_for_nothing(hopper, dtype, kernels):
    geometry = replace(PUBLISHED["esm2_t33_650M_UR50D"], layers=2)
    with FakeTensorMode(), kernels_stood_in(), torch.no_grad():
        model, batch = fake_model(geometry, dtype, hopper), fake_pack(whole(61, 40, 1), hopper)
        model.use_kernels(kernels)
        empty = partial(torch.empty, device=hopper)
        model.contact_head = ContactHead(empty(geometry.layers, geometry.heads), empty(1))
        attention = fitting(geometry, dtype, hopper)[0]
        with Watched(hopper):
            contacts = Contacts(model.contact_head, batch.lengths)
            model.forward_packed(**batch.inputs, attention=attention, taps=Taps(contacts=contacts))
            found = contacts.probabilities()
    assert found.shape == (61 * 62 // 2 + 40 * 41 // 2 + 1,)
    assert (found.dtype, found.device) == (torch.float32, hopper)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pack", "masked"), [("plain", None), ("windows", None), ("plain", 0)])
def test_all_that_is_kept_of_a_pack_waits_for_nothing(hopper, monkeypatch, dtype, pack, masked):
    monkeypatch.setattr(readout, "_AT_ONCE", 16)  # several blocks
    geometry = replace(PUBLISHED["esm2_t33_650M_UR50D"], layers=2)
    with FakeTensorMode(), torch.no_grad():
        model, batch = fake_model(geometry, dtype, hopper), fake_pack(PACKS[pack], hopper, masked)
        with hopper:
            model.language_head = LanguageModelHead(geometry.width)
        model.language_head.complete(torch.empty(33, geometry.width, device=hopper), dtype)
        empty = partial(torch.empty, device=hopper)
        model.contact_head = ContactHead(empty(geometry.layers, geometry.heads), empty(1))
        names = [name for name in ARRAYS if pack == "plain" or name != "contacts"]
        plan = embed_plan(
            arrays=tuple(names),
            dtype=str(dtype).removeprefix("torch."),
            output_dtype="float16",
            attention=fitting(geometry, dtype, hopper)[0],
        )
        of = Readout(model, plan).of
        with Watched(hopper):
            found = of(batch)
    made = {name for name in names if Array.named(name).masked is (masked is not None)}
    assert found.keys() == made
    for name, tensor in found.items():
        array = Array.named(name)
        assert tensor.device == hopper
        assert tensor.dtype == getattr(torch, array.dtype("float16"))
        lines = len(batch.rows) if masked is not None else int(array.lines(batch.residues).sum())
        assert tensor.shape == (lines, *array.line(geometry.width))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_model_runs_with_every_backend_and_waits_for_nothing(hopper, name):
    run(PUBLISHED[name], PACKS.values(), hopper)


def test_so_do_a_pack_of_one_sequence_and_one_of_the_longest_protein(hopper):
    run(PUBLISHED["esm2_t33_650M_UR50D"], EXTREMES.values(), hopper)


def test_the_backends_that_ran_are_all_there_are(hopper):
    found = {
        (dtype, attention)
        for geometry, dtype in product(PUBLISHED.values(), DTYPES)
        for attention in fitting(geometry, dtype, hopper)
    }
    everywhere = set(product(DTYPES, ["memory_efficient", "sdpa"]))
    half = set(product([torch.float16, torch.bfloat16], ["torch_varlen", "flash_attn"]))
    assert found == everywhere | half | {(torch.bfloat16, "fa3")}
    assert {attention for _, attention in found} == set(PREFERENCE["cuda"])


@pytest.mark.parametrize(
    ("inserted", "error"),
    [
        (lambda x: x.tolist(), DataDependentOutputException),
        (lambda x: x.max().item(), DataDependentOutputException),
        (lambda x: x.cpu(), AssertionError),
        (lambda x: torch.ones(2).to(x.device), AssertionError),
    ],
    ids=["tolist", "item", "copy to the host", "copy from the host"],
)
def test_what_waits_is_caught_in_the_model(fake_cuda, monkeypatch, inserted, error):
    embed = PackedESM2._embed

    def waiting(self, input_ids, *others):
        inserted(input_ids)
        return embed(self, input_ids, *others)

    with FakeTensorMode():
        model = fake_model(Geometry(layers=1, width=64, heads=4), torch.float16, fake_cuda)
        batch = fake_pack(PACKS["plain"], fake_cuda)
        forward(model, batch, "torch_varlen")
        monkeypatch.setattr(PackedESM2, "_embed", waiting)
        with pytest.raises(error):
            forward(model, batch, "torch_varlen")


def test_a_pack_on_the_host_is_caught(fake_cuda):
    with FakeTensorMode():
        model = fake_model(Geometry(layers=1, width=64, heads=4), torch.float16, fake_cuda)
        batch = fake_pack(PACKS["plain"], torch.device("cpu"))
        with pytest.raises(Exception, match="cpu"), torch.no_grad():
            model.forward_packed(**batch.inputs, attention="torch_varlen")
