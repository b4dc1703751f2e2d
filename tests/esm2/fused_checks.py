"""The fused kernels beside their twins, with float64 as the judge; interpreted, and on a GPU."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from packedesm.alphabet import MASK
from packedesm.esm2 import triton_kernels
from packedesm.esm2.geometry import VOCABULARY
from packedesm.esm2.linear import linear_gelu
from packedesm.esm2.steps import FURTHEST, TRAINED_KEPT, embed, phases, rotate

# Heads of 16, 24, 32, 64 and 128 numbers, as the published models have; tokens that fill no block.
SHAPES = [(20, 16, 7), (20, 24, 5), (20, 32, 5), (20, 64, 9), (40, 64, 3), (40, 128, 2)]
LONGEST = 35_000  # residues: the longest protein known has 34,350

# What no sum and no maximum may hide.
NO_NUMBERS = (float("nan"), float("inf"))


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def nasty(*shape: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random numbers; among them zeros of both signs, subnormal, large and equal ones."""
    x = torch.randn(*shape, device=device)
    odd = torch.tensor([0.0, -0.0, torch.finfo(dtype).smallest_normal / 4, 2000.0, -2000.0, 1.0])
    odd = odd.to(device)
    where = torch.rand(*shape, device=device) < 0.1
    return torch.where(where, odd[torch.randint(len(odd), shape, device=device)], x).to(dtype)


@contextmanager
def nothing_written_beyond() -> Iterator[None]:
    """Let numbers follow whatever kernels allocate meanwhile, and see that they stay."""
    allocated, new_empty = [], torch.Tensor.new_empty

    def allocate(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None, **named):
        if named:  # the interpreter's own
            return new_empty(like, *shape, dtype=dtype, **named)
        count = math.prod(shape)
        memory = torch.full((count + 8192,), 7, dtype=dtype or like.dtype, device=like.device)
        allocated.append(memory[count:])
        return memory[:count].view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "new_empty", allocate)
        patch.setattr(torch, "empty_like", lambda like: allocate(like, *like.shape))
        yield
    assert allocated and all((beyond == 7).all() for beyond in allocated)


def check_rotate(heads: int, head_dim: int, tokens: int, dtype: torch.dtype, device: str) -> None:
    """Rotated as exactly as by torch, to the furthest position; v and other tokens untouched."""
    more = nasty(tokens + 3, 3, heads, head_dim, dtype=dtype, device=device)
    qkv, beyond = more[:tokens], more[tokens:].clone()
    positions = torch.randint(LONGEST, (tokens,), device=device)
    positions[0], positions[-1] = 0, FURTHEST - 1
    frequencies = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=device) / head_dim)
    # The phase that is asked for is the rounded product.
    angles = (positions.float()[:, None] * frequencies).double()[:, None, None]
    pairs = torch.view_as_complex(qkv[:, :2].double().unflatten(-1, (-1, 2)))
    exact = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    twin = relative(rotate(qkv[:, :2].clone(), phases(positions, frequencies)), exact)
    before = qkv[:, 2].clone()
    triton_kernels.rotate_(qkv, positions, frequencies)
    assert relative(qkv[:, :2], exact) <= 1.5 * twin
    assert torch.equal(qkv[:, 2], before) and torch.equal(more[tokens:], beyond)


def check_add_norm(width: int, tokens: int, dtype: torch.dtype, device: str) -> None:
    """The sum to the bit, its LayerNorm as exactly as by torch, also far from zero."""
    norm = nn.LayerNorm(width, device=device, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(width, device=device))
    norm.bias.copy_(torch.randn(width, device=device))
    for offset in (0, 30):
        x = (3 * torch.randn(tokens, width, device=device) + offset).to(dtype)
        change = torch.randn(tokens, width, device=device).to(dtype)
        x[0, :4] = torch.tensor([0.0, -0.0, torch.finfo(dtype).smallest_normal / 4, 2000.0])
        change[0, :3] = x[0, :3]
        total = x + change
        weights = (norm.weight.double(), norm.bias.double())
        exact = F.layer_norm(total.double(), (width,), *weights, norm.eps)
        with nothing_written_beyond():
            found = triton_kernels.add_norm(x, change, norm)
        assert torch.equal(x, total)
        assert relative(found, exact) <= 1.5 * relative(norm(total), exact)


def check_linear_gelu(
    width: int, columns: int, tokens: int, dtype: torch.dtype, device: str
) -> None:
    """As exact as torch, where GELU bends, where it is nearly nothing and where it does nothing."""
    layer = nn.Linear(width, columns, device=device, dtype=dtype).requires_grad_(False)
    layer.bias.copy_(3 * torch.randn(columns, device=device))
    x = torch.randn(tokens, width, device=device).to(dtype)
    layer.bias[:2] = torch.tensor([-40.0, 40.0])
    exact = F.gelu(F.linear(x.double(), layer.weight.double(), layer.bias.double()))
    twin = linear_gelu(x, layer)
    with nothing_written_beyond():
        found = triton_kernels.linear_gelu(x, layer)
    assert found.dtype == dtype and found.isfinite().all()
    assert relative(found, exact) <= 1.5 * relative(twin, exact)


def check_embed(width: int, dtype: torch.dtype, device: str) -> None:
    """As torch, with masks in no, in some and in all places of sequences short and long."""
    lengths = torch.tensor([1, 3, 33, 64, 1500, 5])
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
    input_ids = torch.randint(4, 24, (int(lengths.sum()),), device=device)
    input_ids[3:200:3] = MASK
    input_ids[-5:] = MASK
    input_ids[1300] = MASK  # in the second thousand of the longest: they are counted by thousands
    weight = nasty(VOCABULARY, width, dtype=dtype, device=device)
    with nothing_written_beyond():
        found = triton_kernels.embed(input_ids, cu_seqlens, 1500, weight, TRAINED_KEPT)
    assert not found[input_ids == MASK].any()
    sequences = zip(input_ids.split(lengths.tolist()), lengths.tolist(), strict=True)
    kept = [torch.full((n,), 1 - float((ids == MASK).sum()) / n) for ids, n in sequences]
    scale = (TRAINED_KEPT / torch.cat(kept).double()).to(device)
    scale[input_ids == MASK] = 0
    exact = weight.double()[input_ids] * scale[:, None]
    twin = embed(input_ids, cu_seqlens, weight)
    assert relative(found, exact) <= 1.5 * relative(twin, exact)


def check_pool(width: int, dtype: torch.dtype, output: torch.dtype, device: str) -> None:
    """Means as exact as torch's, the largest and ``<cls>`` to the bit; no number stays none."""
    lengths = [3, 34, 35, 500, 4]
    hidden = nasty(sum(lengths), width, dtype=dtype, device=device)
    cu_seqlens = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)
    hidden[cu_seqlens[1:] - 1] = 3000  # an <eos> that would be the largest
    for column, value in enumerate(NO_NUMBERS):
        hidden[-3, column] = value
    with nothing_written_beyond():
        mean, largest, cls = triton_kernels.pool(hidden, cu_seqlens, output)
    residues = [sequence[1:-1] for sequence in hidden.split(lengths)]
    exact = torch.stack([vectors.double().mean(0) for vectors in residues])
    twin = torch.stack([vectors.float().mean(0) for vectors in residues]).to(output)
    assert relative(mean[:-1], exact[:-1]) <= 1.5 * relative(twin[:-1], exact[:-1]) + 2**-24
    greatest = torch.stack([vectors.amax(0) for vectors in residues]).to(output)
    assert torch.equal(largest[:-1], greatest[:-1])
    assert torch.equal(cls, hidden[cu_seqlens[:-1]].to(output))
    assert mean[-1, 0].isnan() and largest[-1, 0].isnan()
    assert mean[-1, 1].isinf() and largest[-1, 1].isinf()
    assert mean.isfinite().sum() == largest.isfinite().sum() == mean.numel() - len(NO_NUMBERS)
