"""Stand-ins for the kernels in Triton: what each reads, writes and allocates, as one operator each.

FakeTensorMode cannot run a kernel that is not an operator of torch. A `TorchDispatchMode` sees each
of these once, with the tensors that the kernel is given and the one that it makes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import nn

REAL = "packedesm.esm2.triton_kernels"

_LIBRARY = torch.library.Library("stand_in", "DEF")
_OPERATORS = {
    "rotate_(Tensor(a!) qk, Tensor positions, Tensor frequencies) -> ()": (
        lambda qk, positions, frequencies: None
    ),
    "add_norm(Tensor(a!) x, Tensor change, Tensor weight, Tensor bias) -> Tensor": (
        lambda x, change, weight, bias: torch.empty_like(x)
    ),
    "linear_gelu(Tensor x, Tensor weight, Tensor bias) -> Tensor": (
        lambda x, weight, bias: x.new_empty(len(x), len(weight))
    ),
    "embed(Tensor input_ids, Tensor cu_seqlens, Tensor weight) -> Tensor": (
        lambda input_ids, cu_seqlens, weight: weight.new_empty(len(input_ids), weight.shape[1])
    ),
    "pool(Tensor hidden, Tensor cu_seqlens, ScalarType dtype) -> Tensor": (
        lambda hidden, cu_seqlens, dtype: hidden.new_empty(
            3, len(cu_seqlens) - 1, hidden.shape[1], dtype=dtype
        )
    ),
}
for _schema, _made in _OPERATORS.items():
    _LIBRARY.define(_schema)
    torch.library.register_fake(f"stand_in::{_schema.partition('(')[0]}", _made, lib=_LIBRARY)


def rotate_(qkv: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> None:
    torch.ops.stand_in.rotate_(qkv[:, :2], positions, frequencies)  # v is neither read nor written


def add_norm(x: torch.Tensor, change: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return torch.ops.stand_in.add_norm(x, change, norm.weight, norm.bias)


def linear_gelu(x: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    return torch.ops.stand_in.linear_gelu(x, layer.weight, layer.bias)


def embed(
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    weight: torch.Tensor,
    kept: float,
) -> torch.Tensor:
    return torch.ops.stand_in.embed(input_ids, cu_seqlens, weight)


def pool(hidden: torch.Tensor, cu_seqlens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.ops.stand_in.pool(hidden, cu_seqlens, dtype)


@contextmanager
def kernels_stood_in() -> Iterator[None]:
    """Let the model, and the pooling, find these in the place of the kernels."""
    stand_in = ModuleType(REAL)
    for function in (rotate_, add_norm, linear_gelu, embed, pool):
        setattr(stand_in, function.__name__, function)
    room = sys.modules[REAL.rpartition(".")[0]]
    before = sys.modules.get(REAL), vars(room).get("triton_kernels")
    sys.modules[REAL] = room.triton_kernels = stand_in
    try:
        yield
    finally:
        del sys.modules[REAL], room.triton_kernels
        if before[0] is not None:
            sys.modules[REAL], room.triton_kernels = before
