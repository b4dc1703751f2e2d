"""Masked-language modelling on packed proteins: what is hidden, and what is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from packedesm.alphabet import MASK, encode
from packedesm.packing.batch import PackedBatch

CHOSEN = 0.15  # of the residues are asked for; of these
MASKED = 0.8  # are hidden,
SWAPPED = 0.1  # replaced by a random residue, and the rest stays (BERT, as in ESM-2)

STANDARD = encode(b"ACDEFGHIKLMNPQRSTVWY").astype(np.int64)


class Task(NamedTuple):
    """A pack with hidden residues, and the answers."""

    batch: PackedBatch
    places: torch.Tensor  # int64 (K,): tokens of the pack that are asked for
    answers: torch.Tensor  # int64 (K,): the token ids that stood there


def mask(
    batch: PackedBatch,
    generator: np.random.Generator,
    masked: float = MASKED,
    swapped: float = SWAPPED,
) -> Task:
    """Return the task that `generator` draws from a pack; `batch` stays as it is.

    Only the 20 standard residues are asked for and put in: ``<cls>``, ``<eos>`` and X, B, Z, …
    are never touched. Of those asked for, shares `masked` and `swapped` are hidden and replaced.
    """
    tokens = batch.input_ids.numpy()
    chosen = np.isin(tokens, STANDARD) & (generator.random(len(tokens)) < CHOSEN)
    places = np.flatnonzero(chosen)
    fate = generator.random(len(places))
    shown = np.where(fate < masked, MASK, generator.choice(STANDARD, len(places)))
    shown = np.where(fate < masked + swapped, shown, tokens[places])
    corrupted = replace(batch, numbers=batch.numbers.clone())
    corrupted.input_ids.numpy()[places] = shown
    return Task(corrupted, torch.from_numpy(places), batch.input_ids[places].long())
