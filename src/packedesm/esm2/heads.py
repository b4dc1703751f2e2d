"""ESM-2's head for masked-language modelling: from vectors to the 33 tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from packedesm.esm2.geometry import VOCABULARY

PREFIX = "encoder.lm_head."  # of its weights in fair-esm's files
WEIGHTS = ("dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias")


class LanguageModelHead(nn.Module):
    """Dense layer, GELU, LayerNorm and a product with the embeddings, as fair-esm's `lm_head`.

    The embeddings belong to the encoder and are passed in; the weights have fair-esm's names.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)  # eps 1e-5, as fair-esm's
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    @classmethod
    def from_fair_esm(cls, weights: Mapping[str, torch.Tensor]) -> LanguageModelHead:
        """Return the head of a file in fair-esm's layout, float32, from its ``model`` entry.

        Raises
        ------
        KeyError
            If a weight is missing.
        """
        state = {name: weights[PREFIX + name].float() for name in WEIGHTS}
        head = cls(len(state["dense.bias"]))
        head.load_state_dict(state)
        return head.requires_grad_(False).eval()

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits (tokens, 33), float32 whatever the dtype of the weights is.

        Only the dense layer is computed in that: to round its result and the logits would cost more
        accuracy than time is won.

        Parameters
        ----------
        hidden
            (tokens, width): what `PackedESM2.forward_packed` returns, or rows of it.
        embeddings
            (33, width): `embed_tokens.weight` of the encoder.
        """
        x = F.gelu(self.dense(hidden).float())
        norm = self.layer_norm
        x = F.layer_norm(x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)
        return F.linear(x, embeddings.float(), self.bias.float())
