"""What a pack costs on a GPU besides products and attention: these figures may only fall."""

from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from packedesm.embedding.pooling import pool
from packedesm.esm2.geometry import Geometry
from packedesm.esm2.model import KERNELS
from tests.fake_cuda.kernels import kernels_stood_in
from tests.fake_cuda.models import fake_model, fake_pack, whole
from tests.fake_cuda.observed import Counted

WIDTH, HEADS = 1280, 20  # of the 650M model
RESIDUES = [350, 350, 303]  # with <cls> and <eos> a prime number of tokens: no weight has as many


class Figures(NamedTuple):
    """Costs with 2-byte weights."""

    layer: int  # operators of a layer; each is a kernel
    pack: int  # of a pack besides its layers, mean pooling included
    vectors: float  # bytes by width, read or written by a layer per token, beside products and
    # attention, of what is as long as vectors are
    others: float  # bytes per token in the same way, of what is not: phases, statistics
    peak: float  # vectors of 2-byte numbers per token that are alive at once


RATCHET = {
    "torch": Figures(layer=13, pack=26, vectors=76, others=272, peak=11.1),
    "triton": Figures(layer=9, pack=3, vectors=40, others=4, peak=8),
    "triton+gelu": Figures(layer=8, pack=3, vectors=24, others=4, peak=8),
}


def measured(kernels: str) -> Figures:
    """Run packs through two layers and through three: the difference is a layer."""
    two, three = (counted(layers, kernels) for layers in (2, 3))
    assert three.peak == two.peak, "something stays alive that a layer made"
    layer = three.counts.total() - two.counts.total()
    vectors = others = 0.0
    for numbers, size in (three.moved - two.moved).items():
        if numbers % WIDTH == 0:
            vectors += size / two.tokens / WIDTH
        else:
            others += size / two.tokens
    peak = two.peak / two.tokens / (2 * WIDTH)
    return Figures(layer, two.counts.total() - 2 * layer, vectors, others, peak)


def counted(layers: int, kernels: str) -> Counted:
    device = torch.device("cuda", 0)
    with FakeTensorMode(), torch.no_grad():
        model = fake_model(Geometry(layers, WIDTH, HEADS), torch.float16, device)
        model.use_kernels(kernels)
        batch = fake_pack(whole(*RESIDUES), device)
        with kernels_stood_in(), Counted(device, sum(batch.lengths)) as seen:
            hidden = model.forward_packed(**batch.inputs, attention="torch_varlen")
            pool(hidden, batch, ["mean"], "float16", fused=model.fused)
    return seen


@pytest.mark.parametrize("kernels", KERNELS)
def test_costs_only_fall(fake_cuda, tell, kernels):
    found, allowed = measured(kernels), RATCHET[kernels]
    tell(f"on a GPU with the kernels of {kernels}: {found}")
    for name, figure, most in zip(Figures._fields, found, allowed, strict=True):
        assert figure <= most + 0.01, f"{kernels}: {name} rose"
        assert figure >= most - 0.01, f"{kernels}: {name} fell; write {figure} in RATCHET"


def test_fused_kernels_keep_the_bars(fake_cuda):
    assert all(measured(kernels).vectors <= 40 for kernels in ("triton", "triton+gelu"))
    assert measured("triton+gelu").layer <= 8


def test_what_is_counted_is_what_is_there(fake_cuda):
    """A copy is an operator and moves bytes twice, a view is none, what was deleted is dead."""
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(7, 4, dtype=torch.float16, device=fake_cuda)
        weight = torch.empty(4, 4, dtype=torch.float16, device=fake_cuda)
        with Counted(fake_cuda, 7) as seen:
            y = x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1)  # copied: 7 * 4 numbers
            y.add_(x)  # reads both and writes
            del y
            (x @ weight).sum(1)  # the product is made and read, its sums are written
    assert seen.counts == {"clone": 1, "add_": 1, "mm": 1, "sum": 1}
    assert seen.moved == {4: (2 + 3 + 1) * 7 * 4 * 2, 1: 7 * 2}
    assert seen.peak == 7 * 4 * 2 + 7 * 2
