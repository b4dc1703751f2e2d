"""All that is kept of one pack, from one forward pass: a layer is pooled while it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from packedesm.alphabet import STANDARD, TOKENS
from packedesm.embedding.pooling import over_residues, pool
from packedesm.errors import UserError
from packedesm.esm2.contacts import Contacts, Taps
from packedesm.options import EmbedPlan
from packedesm.outputs import LANGUAGE_HEAD, MARGINALS, PERPLEXITY, Array, heads_of
from packedesm.packing.batch import PackedBatch

if TYPE_CHECKING:
    from packedesm.esm2.model import PackedESM2

_STANDARD = slice(TOKENS.index(STANDARD[0]), TOKENS.index(STANDARD[-1]) + 1)
# Tokens whose logits are in float32 at once: more would take memory that packs were not counted to.
_AT_ONCE = 1 << 14
_SAID = ("logits", "log_likelihood")  # of every residue, by the language head


class Readout:
    """What a plan keeps of each pack.

    Parameters
    ----------
    model
        With the heads that the plan's arrays need.
    plan
        The arrays, their number format, and how they are computed.

    Raises
    ------
    UserError
        If the model has no such head.
    """

    def __init__(self, model: PackedESM2, plan: EmbedPlan) -> None:
        self._model = model
        self._plan = plan
        self._arrays = [Array.named(name) for name in plan.arrays]
        self._fused = plan.kernels != "torch"
        self._contact_head = model.contact_head if "contacts" in plan.arrays else None
        for head in heads_of(plan.arrays):
            if (model.language_head if head == LANGUAGE_HEAD else model.contact_head) is None:
                raise UserError(f"the model has no {head}, which outputs need")

    def of(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Run the forward pass of a pack on its device, and return its arrays by name.

        Of masked copies there are the masked arrays, of records the others. Nothing here waits for
        the device.
        """
        if batch.masked:
            return self._masked(batch)
        found: dict[str, torch.Tensor] = {}
        earlier = {array.layer for array in self._arrays} - {None}

        def visit(layer: int, hidden: torch.Tensor) -> None:
            if layer in earlier:
                found.update(self._pooled(hidden, batch, layer))

        head = self._contact_head
        maps = None if head is None else Contacts(head, batch.lengths)
        hidden = self._model.forward_packed(
            **batch.inputs,
            attention=self._plan.attention,
            taps=Taps(visit if earlier else None, maps),
        )
        found |= self._pooled(hidden, batch, None)
        found |= self._said(hidden, batch)
        if maps is not None:
            found["contacts"] = maps.probabilities().to(getattr(torch, self._plan.output_dtype))
        return {array.name: found[array.name] for array in self._arrays if not array.masked}

    def _masked(self, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Return what the language head says of the one residue of each copy that is masked.

        ``masked_marginals`` (R, 20): log p of the 20 amino acids at the masked position, given all
        other residues, of the softmax over all 33 tokens, natural logarithm: the masked marginals
        of Meier et al. (2021), "Language models enable zero-shot prediction of the effects of
        mutations on protein function", NeurIPS 34. ``pseudo_perplexity`` (R,), float32: log p of
        the residue that was masked, of which `packedesm.embedding.masked` makes the
        pseudo-perplexity.
        """
        hidden = self._model.forward_packed(**batch.inputs, attention=self._plan.attention)
        blocks = batch.masked_tokens.split(_AT_ONCE)
        said = torch.cat([self._logits(hidden, at).log_softmax(1) for at in blocks])
        own = batch.masked_residues.long().unsqueeze(1)
        known = {
            MARGINALS: lambda: said[:, _STANDARD],
            PERPLEXITY: lambda: said.gather(1, own).squeeze(1),
        }
        return {
            array.name: known[array.name]().to(getattr(torch, array.dtype(self._plan.output_dtype)))
            for array in self._arrays
            if array.masked
        }

    def _pooled(
        self, hidden: torch.Tensor, batch: PackedBatch, layer: int | None
    ) -> dict[str, torch.Tensor]:
        """Return the arrays that are vectors of one layer."""
        asked = [a for a in self._arrays if a.output.layered and a.layer == layer]
        if not asked:
            return {}
        outputs = [array.output.name for array in asked]
        pooled = pool(hidden, batch, outputs, self._plan.output_dtype, fused=self._fused)
        return {array.name: pooled[array.output.name] for array in asked}

    def _said(self, hidden: torch.Tensor, batch: PackedBatch) -> dict[str, torch.Tensor]:
        """Return what the language head says of every residue."""
        asked = {array.name: array for array in self._arrays}
        wanted: list[str] = [name for name in _SAID if name in asked]
        if not wanted:
            return {}
        blocks = batch.residue_tokens.split(_AT_ONCE)
        parts = [self._said_of(hidden, batch, at, wanted) for at in blocks]
        said: dict[str, torch.Tensor] = {}
        for name in wanted:
            lines = over_residues(torch.cat([part[name] for part in parts]), batch)
            said[name] = lines.to(getattr(torch, asked[name].dtype(self._plan.output_dtype)))
        return said

    def _said_of(
        self, hidden: torch.Tensor, batch: PackedBatch, at: torch.Tensor, wanted: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Return logits (K, 33) and log likelihoods (K,) of the tokens `at` (K,), float32."""
        logits = self._logits(hidden, at)
        said: dict[str, torch.Tensor] = {"logits": logits}
        if "log_likelihood" in wanted:
            own = batch.input_ids.index_select(0, at).long().unsqueeze(1)
            said["log_likelihood"] = logits.log_softmax(1).gather(1, own).squeeze(1)
        return {name: tensor for name, tensor in said.items() if name in wanted}

    def _logits(self, hidden: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Return the logits (K, 33) of the tokens `at` (K,), float32."""
        assert self._model.language_head is not None
        return self._model.language_head(
            hidden.index_select(0, at), self._model.embed_tokens.weight
        )
