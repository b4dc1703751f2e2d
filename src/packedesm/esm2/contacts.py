"""fair-esm's contact head: from attention maps to the probability that two residues touch.

Rao et al. 2021, Transformer protein language models are unsupervised structure learners (ICLR):
the maps of all layers and heads, made symmetric and corrected by the average product of their rows
(APC; Dunn, Wahl and Gloor 2008, Bioinformatics 24:333), are the features of one logistic
regression. As in fair-esm, ``<cls>`` and ``<eos>`` are left out after the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from packedesm.esm2.float32 import Float32Head
from packedesm.esm2.steps import rotate

# Peak memory of a pack for each two residues of a protein, (i, j) and (j, i) counted apart: what is
# added up, and at the end a triangle or two of it.
BYTES_PER_PAIR = 6
_PREFIX = "contact_head.regression."
_BLOCK_BYTES = 16 << 20  # of maps that are there at once; twice that during their softmax


class ContactHead(Float32Head):
    """A logistic regression over the corrected attention maps of all layers and heads.

    Attributes
    ----------
    weight
        float32 (layers, heads).
    bias
        float32 (1,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    @classmethod
    def from_fair_esm(cls, weights: Mapping[str, Tensor], heads: int) -> ContactHead:
        """Return the head with fair-esm's weights, named without prefix, of so many heads a layer.

        Raises
        ------
        KeyError
            If a weight is missing.
        """
        weight, bias = (
            weights[_PREFIX + name].to(torch.float32, copy=True) for name in ("weight", "bias")
        )
        return cls(weight.reshape(-1, heads), bias)


class Contacts:
    """The contacts of a pack, from the queries and keys of one layer after another.

    The regression is linear: each layer's maps are weighted, added up and forgotten. With the map A
    of a head, S = A + Aᵀ, its row sums r and its total t, APC is S - r rᵀ / t. So the sum over the
    heads of w (S - r rᵀ / t) is X + Xᵀ for X = sum of w A - ½ R diag(w / t) Rᵀ, where the columns
    of R are the row sums. X takes L² numbers of a sequence of L residues, however many maps there
    are; of these as many are there at once as `_BLOCK_BYTES` hold, and one at least.

    Nothing here waits for the device, and all of it is float32.

    Parameters
    ----------
    head
        The regression, on the device of the pack.
    lengths
        Tokens of each sequence on the host, ``<cls>`` and ``<eos>`` included.
    """

    def __init__(self, head: ContactHead, lengths: Sequence[int]) -> None:
        self._head = head
        ends = [*accumulate(lengths)]
        self._spans = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
        residues = (length - 2 for length in lengths)
        self._sums = [head.weight.new_zeros(n, n) for n in residues]

    def add(self, layer: int, q: Tensor, k: Tensor, rotary: Tensor | None = None) -> None:
        """Add the maps of a layer, counted from 0.

        Parameters
        ----------
        q, k
            (total_tokens, heads, head_dim), unscaled.
        rotary
            complex64 (total_tokens, 1, 1, head_dim / 2): what they have to be rotated by; None
            where that has been done.
        """
        weights = self._head.weight[layer]
        for span, total in zip(self._spans, self._sums, strict=True):
            qk = torch.stack((q[span], k[span]), 1).float()  # a copy: attention goes on with `q`
            if rotary is not None:
                qk = rotate(qk, rotary[span])
            queries, keys = qk.permute(1, 2, 0, 3)  # (heads, tokens, head_dim) each
            queries = queries[:, 1:-1] * q.shape[2] ** -0.5
            at_once = max(1, _BLOCK_BYTES // (4 * len(total) * keys.shape[1] or 1))
            blocks = (x.split(at_once) for x in (queries, keys, weights))
            for some_queries, some_keys, some_weights in zip(*blocks, strict=True):
                _add_maps(total, some_queries, some_keys, some_weights)

    def probabilities(self) -> Tensor:
        """Return the probability of contact of each pair of residues of a sequence: float32 (Q,).

        Those of a sequence are the upper triangle with the diagonal, row by row: L (L + 1) / 2 of L
        residues; the sequences are back to back. What was added is given up.
        """
        found = []
        for n, total in enumerate(self._sums):
            rows, columns = torch.triu_indices(*total.shape, device=total.device)
            found.append(total[rows, columns] + total[columns, rows])
            self._sums[n] = total.new_empty(0, 0)
        return torch.cat(found).add_(self._head.bias).sigmoid_()


class Taps(NamedTuple):
    """What looks on as a forward pass goes by.

    Attributes
    ----------
    layer
        Called with the number and the representation (total_tokens, width) of every layer before
        the last, 0 being the embeddings: as fair-esm counts its ``repr_layers``. What it is given
        is overwritten afterwards.
    contacts
        What the attention of every layer is added to, see `Contacts`.
    product
        Called in place of each product of a model in float32, with the layer and its input, (T, K),
        for what they give, (T, N).
    """

    layer: Callable[[int, Tensor], None] | None = None
    contacts: Contacts | None = None
    product: Callable[[nn.Linear, Tensor], Tensor] | None = None


def _add_maps(total: Tensor, queries: Tensor, keys: Tensor, weights: Tensor) -> None:
    """Add what some heads' maps come to, see `Contacts`, to `total` (L, L).

    Parameters
    ----------
    queries, keys
        float32 (heads, L, head_dim), scaled, and (heads, L + 2, head_dim).
    weights
        float32 (heads,).
    """
    maps = torch.bmm(queries, keys.transpose(1, 2)).softmax(2)
    total += torch.tensordot(weights, maps, 1)[:, 1:-1]
    maps = maps[:, :, 1:-1]
    rows = maps.sum(2) + maps.sum(1)
    totals = rows.sum(1)
    # A head that looks at nothing but <cls> and <eos> has no map to correct.
    factors = torch.where(totals > 0, -0.5 * weights / totals, 0.0)
    total.addmm_((rows * factors[:, None]).T, rows)
