"""fair-esm's attention for proteins whose attention weights do not fit into memory at once.

fair-esm makes the weights of all pairs of tokens in all heads, heads x L² numbers, several times:
a protein of 35,200 residues asks for 30 GB or more. Each query's result needs its own line alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import esm
import torch

WHOLE_BYTES = 1 << 28
"""Attention weights up to this size are left to fair-esm: 1,831 tokens with 20 heads."""

_BLOCK_BYTES = 1 << 26


@contextmanager
def blocked(model: esm.ESM2, tokens: int) -> Iterator[None]:
    """Let the block run `model` on one sequence of `tokens` tokens in bounded memory.

    Up to `WHOLE_BYTES` of attention weights nothing is changed. Above, the attention of each layer
    works on blocks of queries, with fair-esm's own projections, rotary embedding and arithmetic.
    """
    if 4 * model.attention_heads * tokens**2 <= WHOLE_BYTES:
        yield
        return
    attentions = [layer.self_attn for layer in model.layers]
    for attention in attentions:
        # An attribute of the object hides the method of its class, until it is deleted.
        attention.forward = partial(_attend, attention)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.forward


def _attend(
    attention: Any, query: torch.Tensor, *, key_padding_mask: object, **_options: object
) -> tuple[torch.Tensor, None]:
    """Return what fair-esm's ``MultiheadAttention.forward`` does for one sequence, (L, 1, D)."""
    if key_padding_mask is not None:
        raise ValueError("one sequence alone has no padding")
    length = len(query)
    projected = (attention.q_proj(query), attention.k_proj(query), attention.v_proj(query))
    q, k, v = (
        x.contiguous().view(length, attention.num_heads, attention.head_dim).transpose(0, 1)
        for x in projected
    )
    q, k = attention.rot_emb(q * attention.scaling, k)
    attended = torch.empty_like(v)
    rows = max(1, _BLOCK_BYTES // (4 * attention.num_heads * length))
    for start in range(0, length, rows):
        scores = torch.bmm(q[:, start : start + rows], k.transpose(1, 2))
        attended[:, start : start + rows] = torch.bmm(scores.softmax(dim=-1), v)
    joined = attended.transpose(0, 1).contiguous().view(length, 1, attention.embed_dim)
    return attention.out_proj(joined), None
