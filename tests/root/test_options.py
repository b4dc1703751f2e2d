from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedesm.errors import UserError
from packedesm.options import LengthPolicy

CHOICES = ["truncate", "window", "full", "error"]


@st.composite
def windows(draw):
    max_length = draw(st.integers(1, 60))
    return draw(st.integers(1, 400)), max_length, draw(st.integers(0, max_length - 1))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("length", [1, 99, 100])
def test_a_record_within_the_limit_is_one_window(choice, length):
    assert LengthPolicy(100, choice, 20).windows(length) == [(0, length)]


def test_truncation_keeps_the_first_residues():
    assert LengthPolicy(100, "truncate", 20).windows(101) == [(0, 100)]


def test_full_keeps_the_whole_record():
    assert LengthPolicy(100, "full", 20).windows(5000) == [(0, 5000)]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (101, [(0, 100), (1, 101)]),
        (180, [(0, 100), (80, 180)]),
        (182, [(0, 100), (41, 141), (82, 182)]),
        (260, [(0, 100), (80, 180), (160, 260)]),
        (261, [(0, 100), (54, 154), (107, 207), (161, 261)]),
    ],
)
def test_windows_of_known_records(length, expected):
    assert LengthPolicy(100, "window", 20).windows(length) == expected


@given(windows())
def test_windows_cover_every_residue_and_share_at_least_the_overlap(case):
    length, max_length, overlap = case
    ranges = LengthPolicy(max_length, "window", overlap).windows(length)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == length
    assert all(stop - start == min(length, max_length) for start, stop in ranges)
    for (start, stop), (next_start, _) in pairwise(ranges):
        assert start < next_start
        assert stop - next_start >= overlap


@given(windows())
def test_windows_are_as_few_as_possible(case):
    length, max_length, overlap = case
    count = len(LengthPolicy(max_length, "window", overlap).windows(length))
    if count > 1:
        reach_of_one_less = max_length + (count - 2) * (max_length - overlap)
        assert reach_of_one_less < length


@given(windows())
def test_windows_are_evenly_spaced(case):
    starts = [start for start, _ in LengthPolicy(case[1], "window", case[2]).windows(case[0])]
    steps = np.diff(starts)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize("choice", CHOICES)
@given(case=windows())
def test_tokens_count_every_window_with_cls_and_eos(choice, case):
    length, max_length, overlap = case
    ranges = LengthPolicy(max_length, choice, overlap).windows(length)
    lengths = np.array([length, 1])
    tokens = LengthPolicy(max_length, choice, overlap).tokens(lengths)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [sum(stop - start + 2 for start, stop in ranges), 3]
    assert LengthPolicy(max_length, choice, overlap).counts(lengths).tolist() == [len(ranges), 1]


@pytest.mark.parametrize("overlap", [100, 101])
def test_an_overlap_that_leaves_no_step_is_the_users_fault(overlap):
    with pytest.raises(UserError, match="window_overlap"):
        LengthPolicy(100, "window", overlap).windows(500)
    with pytest.raises(UserError, match="window_overlap"):
        LengthPolicy(100, "window", overlap).tokens(np.array([500]))


def test_the_overlap_matters_only_to_windows():
    assert LengthPolicy(100, "truncate", 256).windows(500) == [(0, 100)]
