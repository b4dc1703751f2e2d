"""What a shard gives to compute, for the choice of its token budget."""

from __future__ import annotations

from functools import partial

import numpy as np

from packedesm.device.token_budget import Workload
from packedesm.packing.dataset import ProteinDataset
from packedesm.packing.packer import WINDOW, plan_packs

TRIALS = 3  # packs that a token budget is tried on


def workload(dataset: ProteinDataset) -> Workload:
    """Return what the records of a shard are for the choice of a token budget."""
    sequences = int(dataset.policy.counts(dataset.lengths).sum())
    return Workload(int(dataset.tokens.sum()), sequences, partial(trial_packs, dataset))


def trial_packs(dataset: ProteinDataset, token_budget: int) -> list[list[int]]:
    """Return the tokens of every sequence of some packs of the shard, evenly spaced in its plan.

    The plan goes from the longest records to the shortest, so they stand for all of it.
    """
    packs = plan_packs(dataset.tokens[:WINDOW], token_budget)
    # A record above the budget has a pack of its own with any budget.
    within = np.flatnonzero(packs.tokens <= token_budget)
    parts = [part for part in np.array_split(within, TRIALS) if len(part)]
    lengths = [dataset.lengths[packs[int(part[len(part) // 2])]] for part in parts]
    return [dataset.policy.sequence_tokens(of_pack).tolist() for of_pack in lengths]
