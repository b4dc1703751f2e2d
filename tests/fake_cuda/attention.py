"""Attention on the made-up GPU: what real kernels refuse, and stand-ins for optional libraries."""

import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from packedesm.esm2.torch_operators import EFFICIENT, FLASH

HALF = (torch.float16, torch.bfloat16)
_ALIGNMENT = 16  # bytes


def check_attention(
    tensors: list[torch.Tensor],
    begins: list[torch.Tensor],
    longest: list[int],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Assert what a kernel checks when it is launched, and its fake implementation does not.

    The sources are named in `packedesm.esm2.torch_operators`.
    """
    q = tensors[0]
    assert q.dtype in dtypes
    for x in tensors:
        assert (x.shape, x.dtype, x.device) == (q.shape, q.dtype, q.device)
        assert x.stride(-1) == 1 and x.shape[-1] % 8 == 0
        for step in (x.storage_offset(), *x.stride()[:-1]):
            assert step * x.element_size() % _ALIGNMENT == 0
    for x in begins:
        assert (x.dtype, x.dim(), x.device) == (torch.int32, 1, q.device) and x.is_contiguous()
        assert 2 <= len(x) <= 65_536
    for number in longest:
        assert type(number) is int and 0 < number <= q.shape[-3]


def check_operator(operator: torch._ops.OpOverload, arguments: Mapping[str, Any]) -> None:
    """Assert what the kernel below one of torch's operators checks, if it is one of attention."""
    expected = {
        FLASH.name: (FLASH, 3, HALF),
        EFFICIENT.name: (EFFICIENT, 4, (*HALF, torch.float32)),
    }
    name = operator._schema.name.partition("::")[2]
    if name in expected:
        ours, dimensions, dtypes = expected[name]
        tensors = [arguments[argument] for argument in ("query", "key", "value")]
        assert all(x.dim() == dimensions for x in tensors)
        assert dimensions == 3 or len(tensors[0]) == 1
        begins, longest = ([arguments[x] for x in names] for names in (ours.begins, ours.longest))
        check_attention(tensors, begins, longest, dtypes)


@torch.library.custom_op("stand_in::flash_attention", mutates_args=())
def _flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> torch.Tensor:
    raise NotImplementedError


@_flash_attention.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    begins, longest = [cu_seqlens_q, cu_seqlens_k], [max_seqlen_q, max_seqlen_k]
    check_attention([q, k, v], begins, longest, HALF)
    return torch.empty_like(q)


def install_stand_ins(monkeypatch) -> None:
    """Let flash_attn and fa3_fwd_interface be found, with an operator that has no kernel."""
    for name in ("flash_attn", "fa3_fwd_interface"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None, origin="stand-in")
        module.flash_attn_varlen_func = _flash_attention
        monkeypatch.setitem(sys.modules, name, module)
