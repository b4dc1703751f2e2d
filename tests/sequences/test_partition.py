"""Where records are cut into shards, and which of them repeat an earlier one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedesm.sequences.partition import (
    cut,
    duplicates,
    first_occurrences,
    partition,
    token_cost,
)
from tests.typed import shard_options


def test_cost_is_the_share_of_the_models_floating_point_work():
    width, tokens = 640, np.array([3, 350, 1024])
    weights = 4 * width * width + 2 * width * 4 * width  # q, k, v, output; feed-forward
    matrices = 2 * weights * tokens
    attention = 2 * (2 * tokens * tokens * width)
    cost = token_cost(tokens, width)
    assert cost.dtype == np.float64
    assert np.allclose(cost / cost[0], (matrices + attention) / (matrices + attention)[0])
    assert np.allclose(cost / tokens, 1 + attention / matrices)


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=60), st.integers(1, 70))
def test_cuts_are_off_by_at_most_half_a_record(costs, shards):
    costs = np.array(costs)
    bounds = cut(costs, shards)
    assert len(bounds) == shards + 1
    assert (bounds[0], bounds[-1]) == (0, len(costs))
    assert (np.diff(bounds) >= 0).all()
    reached = np.concatenate([[0], np.cumsum(costs)])[bounds]
    off = np.abs(reached - costs.sum() * np.arange(shards + 1) / shards)
    assert off.max() <= costs.max() / 2 * (1 + 1e-9) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_first_occurrences_are_those_of_a_dictionary(pairs):
    seen = {}
    expected = [seen.setdefault(pair, row) for row, pair in enumerate(pairs)]
    assert first_occurrences(np.array(pairs, dtype=np.uint64)).tolist() == expected


def test_duplicates_point_to_their_first_unless_each_is_embedded():
    first = np.array([0, 1, 0, 1, 4])
    assert duplicates(first, deduplicate=True).tolist() == [-1, -1, 0, 1, -1]
    assert duplicates(first, deduplicate=False).tolist() == [-1] * 5


@pytest.mark.parametrize("config", [{}, {"long_sequences": "window", "max_length": 60}])
def test_a_record_that_is_masked_costs_a_pass_more_for_each_residue(config):
    lengths, rows, width = np.array([30, 7, 100, 300]), np.array([0, 2, 3]), 64
    config |= {"window_overlap": 20}
    asked = shard_options(outputs=["mean", "masked_marginals"], **config)
    found = partition(lengths, rows, 2, width, asked)
    plain = partition(lengths, rows, 2, width, shard_options(**config))
    windows = [asked.length.windows(int(length)) for length in lengths[rows]]
    one = [float(token_cost(np.array([w[0][1] + 2]), width)[0]) for w in windows]
    copies = [30, 100, 300]
    passes = [len(w) + n for w, n in zip(windows, copies, strict=True)]
    assert found.costs == pytest.approx([c * n for c, n in zip(one, passes, strict=True)])
    assert plain.costs == pytest.approx([c * len(w) for c, w in zip(one, windows, strict=True)])
    assert found.masked_passes.tolist() == copies
    assert found.masked_tokens.tolist() == [
        n * (w[0][1] + 2) for n, w in zip(copies, windows, strict=True)
    ]
    assert not plain.masked_passes.any()
    assert not plain.masked_tokens.any()
