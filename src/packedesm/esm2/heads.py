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

    The embeddings belong to the encoder and are passed in; the weights have fair-esm's names. All
    after the dense layer is float32, in half precision too: logits are compared with one another,
    and half precision would tell few of them apart.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)  # eps 1e-5, as fair-esm's
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    @classmethod
    def from_fair_esm(
        cls, weights: Mapping[str, torch.Tensor], prefix: str = PREFIX
    ) -> LanguageModelHead:
        """Return the head of a file in fair-esm's layout, float32, from its ``model`` entry.

        Parameters
        ----------
        prefix
            What the names of its weights begin with there.

        Raises
        ------
        KeyError
            If a weight is missing.
        """
        state = {name: weights[prefix + name].to(torch.float32, copy=True) for name in WEIGHTS}
        with torch.device("meta"):
            head = cls(len(state["dense.bias"]))
        head.load_state_dict(state, assign=True)
        return head.requires_grad_(False).eval()

    def placed(self, dtype: torch.dtype, device: torch.device | str) -> LanguageModelHead:
        """Return the head moved to `device`, its dense layer as `dtype`, and all else float32."""
        self.to(device).dense.to(dtype)
        return self

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (tokens, 33), of the tokens in `packedesm.alphabet.TOKENS`.

        Parameters
        ----------
        hidden
            (tokens, width): what `PackedESM2.forward_packed` returns, or rows of it.
        embeddings
            (33, width): `embed_tokens.weight` of the encoder.
        """
        norm = self.layer_norm
        gelu = F.gelu(self.dense(hidden).float())
        normed = F.layer_norm(
            gelu, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
        return F.linear(normed, embeddings.float(), self.bias.float())
