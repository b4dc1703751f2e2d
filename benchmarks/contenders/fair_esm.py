"""fair-esm 2.0.0, unmodified: sorted by length, in arrival order, as esm-extract, or one by one.

Its forward pass always ends in the head for language modelling, which users cannot leave out.
"""

from __future__ import annotations

from collections.abc import Sequence

import esm
import numpy as np
import torch

from benchmarks.contenders.base import PaddedContender, Task, in_input_order
from packedesm.esm2.tensor_files import load_archive

EXTRACT_LENGTH = 1022  # esm-extract's --truncation_seq_length


def load(task: Task, dtype: str, order: str = "sorted") -> FairESM:
    """Load the checkpoint as fair-esm does; it tells ESM-2 by the beginning of the name."""
    archive = load_archive(task.checkpoint)
    model, _alphabet = esm.pretrained.load_model_and_alphabet_core("esm2", archive)
    model = model.eval().to(task.device, getattr(torch, dtype))
    return (EsmExtract if order == "extract" else FairESM)(model, task.device, order)


class FairESM(PaddedContender):
    """Padded batches through fair-esm's model."""

    packages = ("torch", "fair-esm")

    def __init__(self, model: esm.ESM2, device: str, order: str) -> None:
        super().__init__(device, order)
        self.model = model

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the last representation."""
        last = self.model.num_layers
        return self.model(ids, repr_layers=[last])["representations"][last]

    def plan(self, sequences: Sequence[str], budget: int) -> list[list[int]]:
        """Return batches as asked for; one by one is the reference."""
        if self.order == "one by one":
            return [[item] for item in range(len(sequences))]
        return super().plan(sequences, budget)


class EsmExtract(FairESM):
    """The loop of esm-extract (scripts/extract.py of fair-esm) without writing its .pt files.

    Batches, tokenising and pooling are fair-esm's own, and they are timed.
    """

    def prepare(self, sequences: Sequence[str], budget: int) -> None:
        """Make esm-extract's data set; `budget` is its --toks_per_batch."""
        self.data = esm.FastaBatchedDataset(range(len(sequences)), sequences)
        self.budget = budget

    @torch.inference_mode()
    def embed(self) -> np.ndarray:
        """Do what esm-extract does, batch by batch."""
        batches = self.data.get_batch_indices(self.budget, extra_toks_per_seq=1)
        loader = torch.utils.data.DataLoader(
            self.data,
            collate_fn=self.model.alphabet.get_batch_converter(EXTRACT_LENGTH),
            batch_sampler=batches,
        )
        vectors, items = [], []
        for labels, strings, ids in loader:
            hidden = self.hidden(ids.to(self.device, non_blocking=True)).cpu()
            for row, string in enumerate(strings):
                length = min(EXTRACT_LENGTH, len(string))
                vectors.append(hidden[row, 1 : length + 1].mean(0).float())
            items += labels
        return in_input_order(torch.stack(vectors), items)
