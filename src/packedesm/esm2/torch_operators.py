"""torch's own kernels for attention within each sequence of a pack, called by their operators.

`torch.nn.attention.varlen` wraps the first in a Python operator, which costs a dispatch and fills a
state of random numbers in every layer; for the second, torch has no function for sequences that
stand back to back. Operators that begin with an underscore may change with any version of torch:
whether they still take the arguments that are given here is looked up once, by name.

What they need is read from torch's sources, below aten/src/ATen/native/transformers/cuda
(attention.cu; flash_attn/flash_api.cpp and flash_fwd_launch_template.h; and of those that come with
torch as headers, mem_eff_attention/kernel_forward.h and kernels/cutlassF.h):

- The scale is 1/√head_dim if none is given, and a dropout of 0 draws no random numbers.
- Of q, k and v only the last dimension must be contiguous; each has strides of its own. Heads and
  tokens must begin at multiples of 16 bytes, which slices of one projection do where head_dim is a
  multiple of 8.
- `cu_seqlens` are int32 and contiguous on the device; the longest sequence is an int on the host.
- Sequences are a dimension of CUDA's grid, which ends at 65,535; so they are for flash_attn and
  `scaled_dot_product_attention` (https://github.com/pytorch/pytorch/issues/146704,
  https://github.com/Dao-AILab/flash-attention/issues/1786).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

MOST_SEQUENCES = 65_535  # of one call of any kernel on a GPU


@dataclass(eq=False)
class Operator:
    """A private operator of torch for attention within sequences.

    Attributes
    ----------
    name
        Without ``aten::``.
    begins, longest
        What it calls the places where sequences of queries and of keys begin, and the tokens of the
        longest.
    fixed
        Its other arguments, besides ``query``, ``key`` and ``value``.
    """

    name: str
    begins: tuple[str, str]
    longest: tuple[str, str]
    fixed: Mapping[str, Any]

    @cached_property
    def is_as_expected(self) -> bool:
        """Whether the torch that runs has it, with the arguments that a call gives."""
        operator = getattr(getattr(torch.ops.aten, self.name, None), "default", None)
        if operator is None:
            return False
        arguments = operator._schema.arguments
        needed = {argument.name for argument in arguments if not argument.has_default_value()}
        given = {"query", "key", "value", *self.begins, *self.longest, *self.fixed}
        return needed <= given <= {argument.name for argument in arguments}

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, **others: Any
    ) -> Tensor:
        """Return the attention, shaped as `q`; `others` replace arguments of `fixed`."""
        operator = getattr(torch.ops.aten, self.name).default
        both = dict.fromkeys(self.begins, cu_seqlens) | dict.fromkeys(self.longest, max_seqlen)
        outputs = operator(query=q, key=k, value=v, **both, **{**self.fixed, **others})
        return cast(Tensor, outputs[0])


FLASH = Operator(  # of q, k and v (total_tokens, heads, head_dim)
    "_flash_attention_forward",
    begins=("cum_seq_q", "cum_seq_k"),
    longest=("max_q", "max_k"),
    fixed={"dropout_p": 0.0, "is_causal": False, "return_debug_mask": False},
)

EFFICIENT = Operator(  # of q, k and v (1, total_tokens, heads, head_dim)
    "_efficient_attention_forward",
    begins=("cu_seqlens_q", "cu_seqlens_k"),
    longest=("max_seqlen_q", "max_seqlen_k"),
    # Mask 0 is none.
    fixed={"bias": None, "dropout_p": 0.0, "custom_mask_type": 0, "compute_log_sumexp": False},
)
