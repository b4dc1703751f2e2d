"""What a job finds out of its shard before it begins."""

import numpy as np

from packedesm.embedding.workload import TRIALS, trial_packs, workload
from packedesm.packing.dataset import SequenceDataset
from packedesm.packing.items import Items
from tests.typed import policy


def test_a_budget_is_tried_on_packs_of_the_shard_from_all_of_its_lengths(shard):
    lengths = np.random.default_rng(1).integers(1, 300, 400)
    paths = shard(*("M" * length for length in lengths), deduplicate=False)
    dataset = SequenceDataset(paths.shard_fasta(0), policy())
    packs = trial_packs(Items(dataset), 1000)
    assert len(packs) == TRIALS
    assert all(900 < sum(pack) <= 1000 for pack in packs)
    found = {length for pack in packs for length in pack}
    assert found <= set((lengths + 2).tolist())
    assert len(found) > 10  # not one length, over and over
    typical = [np.mean(pack) for pack in packs]
    assert typical[0] > lengths.mean() > typical[-1]
    assert trial_packs(Items(dataset), 1000) == packs


def test_a_budget_above_the_shard_is_tried_on_all_of_it_once(shard):
    paths = shard("M" * 100, "M" * 30, long_sequences="window", max_length=60, window_overlap=20)
    windows = policy(long_sequences="window", max_length=60, window_overlap=20)
    dataset = SequenceDataset(paths.shard_fasta(0), windows)
    assert trial_packs(Items(dataset), 1000) == [[62, 62, 32]]


def test_records_above_a_budget_are_not_tried(shard):
    """They would take more memory than the budget is to be chosen for."""
    paths = shard("M" * 500, "A" * 400, "C" * 40)
    dataset = SequenceDataset(paths.shard_fasta(0), policy())
    assert trial_packs(Items(dataset), 100) == [[42]]
    assert trial_packs(Items(dataset), 30) == []


def test_where_there_are_masked_copies_a_budget_is_tried_on_packs_of_them(shard):
    paths = shard("MKV", "ACDEFGHIKL")
    items = Items(SequenceDataset(paths.shard_fasta(0), policy()), masked=True)
    assert trial_packs(items, 24) == [[12, 12], [12, 12], [5, 5, 5]]
    found = workload(items)
    assert found.tokens == 5 + 12 + 3 * 5 + 10 * 12
    assert found.sequences == 2 + 3 + 10
