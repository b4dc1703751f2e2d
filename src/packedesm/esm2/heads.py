"""ESM-2's head for masked-language modelling: from vectors to the 33 tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from packedesm.esm2.float32 import Float32Head
from packedesm.esm2.geometry import VOCABULARY

PREFIX = "encoder.lm_head."  # of its weights in fair-esm's files
WEIGHTS = ("dense.weight", "dense.bias", "layer_norm.weight", "layer_norm.bias", "bias")


class LanguageModelHead(Float32Head):
    """Dense layer, GELU, LayerNorm and a product with the embeddings, as fair-esm's `lm_head`.

    The embeddings belong to the encoder and are passed in; the weights have fair-esm's names. All
    of it is float32, of an encoder in half precision too.

    Attributes
    ----------
    rounded_off
        float32 (33, width): what half precision took from the embeddings, see `complete`; or None.
    """

    rounded_off: torch.Tensor | None

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width)  # eps 1e-5, as fair-esm's
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.register_buffer("rounded_off", None, persistent=False)

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

    def complete(self, embeddings: torch.Tensor, dtype: torch.dtype) -> None:
        """Keep what an encoder in `dtype` lacks of the embeddings: the last product is with both.

        Parameters
        ----------
        embeddings
            (33, width), as the checkpoint has them.
        """
        exact = embeddings.float()
        self.rounded_off = exact - exact.to(dtype).float()

    def forward(self, hidden: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits, float32 (tokens, 33), of the tokens in `packedesm.alphabet.TOKENS`.

        Parameters
        ----------
        hidden
            (tokens, width): what `PackedESM2.forward_packed` returns, or rows of it.
        embeddings
            (33, width): `embed_tokens.weight` of the encoder.
        """
        normed = self.layer_norm(F.gelu(self.dense(hidden.float())))
        exact = embeddings.float()
        # In float32 they are whole, whatever they were loaded as: trained, or put there since.
        if self.rounded_off is not None and embeddings.dtype != torch.float32:
            exact = exact + self.rounded_off
        return F.linear(normed, exact, self.bias)
