"""What a shard gives to compute, for the choice of its token budget."""

from __future__ import annotations

from functools import partial

import numpy as np

from packedesm.device.token_budget import Workload
from packedesm.packing.items import Items
from packedesm.packing.packer import WINDOW, plan_packs

TRIALS = 3  # packs that a token budget is tried on


def workload(items: Items) -> Workload:
    """Return what the items of a job are for the choice of a token budget."""
    dataset = items.dataset
    sequences = int(dataset.policy.counts(dataset.lengths).sum()) + len(items) - items.records
    return Workload(int(items.tokens.sum(dtype=np.int64)), sequences, partial(trial_packs, items))


def trial_packs(items: Items, token_budget: int) -> list[list[int]]:
    """Return the tokens of every sequence of some packs of a job, evenly spaced in its plan.

    The plan goes from the longest records to the shortest, so they stand for all of it. Where there
    are masked copies their packs do: they are nearly all that is to be done.
    """
    dataset, copies = items.dataset, items.copies is not None
    tokens = items.tokens[items.records if copies else 0 :][:WINDOW]
    packs = plan_packs(tokens, token_budget)
    # A record above the budget has a pack of its own with any budget.
    within = np.flatnonzero(packs.tokens <= token_budget)
    parts = [part for part in np.array_split(within, TRIALS) if len(part)]
    chosen = [packs[int(part[len(part) // 2])] for part in parts]
    if copies:
        return [tokens[pack].tolist() for pack in chosen]
    return [dataset.policy.sequence_tokens(dataset.lengths[pack]).tolist() for pack in chosen]
