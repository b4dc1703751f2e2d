"""fair-esm's contact head: from attention maps to the probability that residues touch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

PREFIX = "contact_head.regression."


class ContactHead(nn.Module):
    """A logistic regression over the corrected attention maps of all layers and heads.

    Attributes
    ----------
    weight
        float32 (layers, heads).
    bias
        float32 (1,).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @classmethod
    def from_fair_esm(cls, weights: Mapping[str, torch.Tensor], heads: int) -> ContactHead:
        """Return the head with fair-esm's weights, named without prefix, of so many heads a layer.

        Raises
        ------
        KeyError
            If a weight is missing.
        """
        weight, bias = (
            weights[PREFIX + name].to(torch.float32, copy=True) for name in ("weight", "bias")
        )
        return cls(weight.reshape(-1, heads), bias)
