"""Attention on the made-up GPU: which operators of torch it is, with which arguments."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from packedesm.esm2 import attention
from packedesm.esm2.attention import Sequences, attend, varlen_attention
from packedesm.esm2.torch_operators import FLASH
from tests.fake_cuda.observed import Counted, Watched

CHANGED = replace(FLASH, name="_attention_of_old")  # that torch does not have


def begins(sequences, device):
    return torch.empty(sequences + 1, dtype=torch.int32, device=device)


@pytest.mark.parametrize(
    ("flash", "expected"),
    [(FLASH, FLASH.name), (CHANGED, "_varlen_attn")],
    ids=["beneath", "above"],
)
def test_torch_varlen_is_one_operator(fake_cuda, monkeypatch, flash, expected):
    """Of torch's own below the wrapper, or the wrapper, where torch has changed that."""
    monkeypatch.setattr(attention, "FLASH", flash)
    with FakeTensorMode():
        q, k, v = torch.empty(9, 3, 2, 16, dtype=torch.float16, device=fake_cuda).unbind(1)
        cu_seqlens = begins(2, fake_cuda)
        with Counted(fake_cuda, 9) as seen:
            found = varlen_attention(q, k, v, cu_seqlens, 5, backend="torch_varlen")
    assert (found.shape, found.dtype, found.device) == (q.shape, q.dtype, fake_cuda)
    assert seen.counts == {expected: 1}


@pytest.mark.parametrize("backend", ["torch_varlen", "memory_efficient"])
def test_a_pack_of_many_peptides_on_a_gpu_is_attended_in_two_launches(fake_cuda, backend):
    with FakeTensorMode():
        q, k, v = torch.empty(240_000, 3, 2, 16, dtype=torch.float16, device=fake_cuda).unbind(1)
        sequences = Sequences(begins(80_000, fake_cuda), 3, [3] * 80_000)
        with Counted(fake_cuda, len(q)) as seen:
            found = attend(backend, q, k, v, sequences)
    assert found.shape == q.shape
    assert sum(n for name, n in seen.counts.items() if "attention" in name) == 2


@pytest.mark.parametrize("gradients", [False, True])
def test_memory_efficient_keeps_what_gradients_need_and_only_then(fake_cuda, gradients):
    with FakeTensorMode():
        shape = (3, 9, 2, 16)
        q, k, v = torch.empty(shape, device=fake_cuda, requires_grad=gradients).unbind()
        cu_seqlens = begins(2, fake_cuda)
        with Counted(fake_cuda, 9) as seen:
            found = varlen_attention(q, k, v, cu_seqlens, 5, backend="memory_efficient")
    assert found.requires_grad == gradients
    kept = 2 * 2 * 32 * 4  # float32, a logarithm for each of 2 sequences, 2 heads and 32 tokens
    assert seen.peak == 9 * 2 * 16 * 4 + gradients * kept + 2 * 8  # and two seeds, not used


@pytest.mark.parametrize("backend", ["torch_varlen", "memory_efficient"])
@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"dtype": torch.float64},
        {"head_dim": 12},
        {"begins": torch.int64},
        {"step": 2},
        {"max_seqlen": 10},
    ],
    ids=str,
)
def test_the_made_up_gpu_refuses_what_a_real_one_refuses(fake_cuda, backend, wrong):
    """Fake implementations of operators do not: without this the tests could not fail."""
    right = {"dtype": torch.float16, "head_dim": 16, "begins": torch.int32, "step": 1}
    made = right | {"max_seqlen": 5} | wrong
    with FakeTensorMode(), Watched(fake_cuda):
        shape = (9, 3, 2, made["head_dim"])
        q, k, v = torch.empty(shape, dtype=made["dtype"], device=fake_cuda).unbind(1)
        numbers = torch.empty(3 * made["step"], dtype=made["begins"], device=fake_cuda)
        arguments = (q, k, v, numbers[:: made["step"]], made["max_seqlen"])
        if not wrong:
            assert varlen_attention(*arguments, backend=backend).shape == q.shape
            return
        with pytest.raises(AssertionError):
            varlen_attention(*arguments, backend=backend)
