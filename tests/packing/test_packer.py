import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packedesm.packing.packer import FirstFitDecreasingPacker, Packs, padded_tokens, plan_packs
from packedesm.sequences.fasta import read_records


def textbook(lengths, budget):
    """First-fit decreasing, item by item."""
    packs, room = [], []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        for pack, free in enumerate(room):
            if lengths[item] <= free:
                packs[pack].append(item)
                room[pack] -= lengths[item]
                break
        else:
            packs.append([item])
            room.append(budget - lengths[item])
    return packs


def as_lists(packs):
    return [packs[p].tolist() for p in range(len(packs))]


def check_invariants(packs, lengths, budget):
    assert sorted(packs.items.tolist()) == list(range(len(lengths)))
    assert packs.offsets[0] == 0
    assert packs.offsets[-1] == len(lengths)
    for p in range(len(packs)):
        members = packs[p]
        assert len(members)
        assert packs.tokens[p] == lengths[members].sum()
        assert packs.tokens[p] <= budget or len(members) == 1
    assert 0 <= packs.fill <= 1


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=120), st.integers(1, 60))
def test_packs_are_those_of_textbook_first_fit_decreasing(lengths, budget):
    packs = FirstFitDecreasingPacker(budget).pack(np.array(lengths, dtype=np.int64))
    assert as_lists(packs) == textbook(lengths, budget)
    check_invariants(packs, np.array(lengths, dtype=np.int64), budget)


@pytest.mark.parametrize("seed", range(8))
def test_packs_are_those_of_the_textbook_on_protein_like_lengths(seed):
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(5.6, 0.8, 1500).astype(int) + 3, 1024)
    budget = int(rng.choice([1024, 2048, 5000]))
    packs = FirstFitDecreasingPacker(budget).pack(lengths)
    assert as_lists(packs) == textbook(lengths.tolist(), budget)


def test_a_worked_example():
    packs = FirstFitDecreasingPacker(10).pack(np.array([4, 8, 1, 4, 2, 1]))
    assert as_lists(packs) == [[1, 4], [0, 3, 2, 5]]
    assert packs.tokens.tolist() == [10, 10]
    assert packs.fill == 1.0


def test_an_item_over_the_budget_gets_a_pack_of_its_own():
    packs = FirstFitDecreasingPacker(10).pack(np.array([3, 25, 7, 11]))
    assert as_lists(packs) == [[1], [3], [2, 0]]
    assert packs.fill == 1.0


def test_fill_is_the_share_of_the_budget_that_is_used():
    packs = FirstFitDecreasingPacker(10).pack(np.array([6, 6]))
    assert packs.fill == pytest.approx(0.6)


def test_no_items_make_no_packs():
    packs = plan_packs(np.array([], dtype=np.int64), 10)
    assert len(packs) == 0
    assert packs.offsets.tolist() == [0]
    assert packs.fill == 0.0


def test_arrays_are_int64_whatever_the_lengths_are():
    packs = plan_packs(np.array([3, 4], dtype=np.uint16), 10)
    assert {packs.items.dtype, packs.offsets.dtype, packs.tokens.dtype} == {np.dtype(np.int64)}
    assert as_lists(packs) == [[1, 0]]


def test_a_pack_beyond_the_last_is_an_index_error():
    packs = FirstFitDecreasingPacker(10).pack(np.array([6, 6]))
    assert packs[-1].tolist() == [1]
    with pytest.raises(IndexError):
        packs[2]
    assert len(list(packs)) == 2


@pytest.mark.parametrize("lengths", [[3, 0], [-1], [1.5], [[1, 2]]])
def test_lengths_that_are_no_token_counts_are_refused(lengths):
    with pytest.raises(ValueError, match="lengths"):
        FirstFitDecreasingPacker(10).pack(np.array(lengths))


def test_a_budget_or_window_below_one_is_refused():
    with pytest.raises(ValueError, match="token_budget"):
        FirstFitDecreasingPacker(0)
    with pytest.raises(ValueError, match="window"):
        plan_packs(np.array([1]), 10, window=0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 60), st.integers(1, 90))
def test_each_window_is_packed_on_its_own(lengths, budget, window):
    expected = []
    for start in range(0, len(lengths), window):
        for pack in textbook(lengths[start : start + window], budget):
            expected.append([start + item for item in pack])
    packs = plan_packs(np.array(lengths, dtype=np.int64), budget, window)
    assert as_lists(packs) == expected
    check_invariants(packs, np.array(lengths, dtype=np.int64), budget)


def test_fill_on_real_proteins_is_99_percent(uniprot_20k):
    residues = np.array([len(record.sequence) for record in read_records(uniprot_20k)])
    assert len(residues) == 20_000
    lengths = np.minimum(residues, 1022) + 2
    packs = plan_packs(lengths, 16_384)
    check_invariants(packs, lengths, 16_384)
    assert packs.fill >= 0.99


@pytest.mark.parametrize("seed", range(5))
def test_fill_on_100_short_records_is_over_90_percent(seed):
    lengths = np.random.default_rng(seed).integers(40, 201, 100) + 2
    assert plan_packs(lengths, 1024).fill > 0.90


@pytest.mark.parametrize("budget", [2048, 4096, 16_384])
def test_short_records_take_no_more_packs_than_their_tokens_need(budget):
    lengths = np.random.default_rng(0).integers(40, 201, 100) + 2
    assert len(plan_packs(lengths, budget)) == -(-lengths.sum() // budget)


def padded_by_hand(lengths, budget):
    batches = [[]]
    for length in lengths:
        grown = [*batches[-1], length]
        if batches[-1] and len(grown) * max(grown) > budget:
            batches.append([length])
        else:
            batches[-1] = grown
    return sum(len(batch) * max(batch) for batch in batches if batch)


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 100))
def test_padded_tokens_are_those_of_greedy_batches(lengths, budget):
    array = np.array(lengths, dtype=np.int64)
    assert padded_tokens(array, budget, False) == padded_by_hand(lengths, budget)
    longest_first = sorted(lengths, reverse=True)
    assert padded_tokens(array, budget, True) == padded_by_hand(longest_first, budget)


def test_padded_tokens_of_a_worked_example():
    lengths = np.array([5, 1, 5, 1])
    assert padded_tokens(lengths, 10, length_sorted=False) == 20
    assert padded_tokens(lengths, 10, length_sorted=True) == 12
    assert padded_tokens(np.array([50, 1]), 10, length_sorted=False) == 51


def test_a_million_lengths_are_packed_in_about_a_second():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.8, 0.75, 10**6).astype(np.int64), 10, 1022) + 2
    began = time.process_time()
    packs = FirstFitDecreasingPacker(16_384).pack(lengths)
    assert time.process_time() - began < 2  # 0.1 to 0.2 s on a quiet core
    assert isinstance(packs, Packs)
    assert np.array_equal(np.sort(packs.items), np.arange(10**6))
    assert np.array_equal(np.add.reduceat(lengths[packs.items], packs.offsets[:-1]), packs.tokens)
    assert packs.tokens.max() <= 16_384
