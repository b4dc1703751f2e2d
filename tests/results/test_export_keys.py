import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packedesm.results.exports.keys import (
    Rule,
    accession,
    biotrainer_hash,
    first_rows,
    unique_keys,
)

H5 = Rule(forbidden="/\0", names=(".",))
FILES = Rule(forbidden="/\0", names=(".", ".."), longest=20)


def test_ids_that_can_be_keys_stay_and_others_are_escaped_as_in_addresses():
    ids = ["P1", "P1/1-20", ".", "a\0b", "Ü", "100%"]
    keys, replaced = unique_keys(ids, H5)
    assert keys == ["P1", "P1%2F1-20", "%2E", "a%00b", "Ü", "100%"]
    assert replaced == [1, 2, 3]


def test_repeated_ids_are_numbered_from_the_second_on():
    assert unique_keys(["a", "b", "a", "a"], H5) == (["a", "b", "a~2", "a~3"], [2, 3])


def test_an_id_keeps_its_name_whoever_else_would_take_it():
    keys, replaced = unique_keys(["x/y", "x/y", "a", "a", "a~2", "x%2Fy"], H5)
    assert keys == ["x%2Fy~2", "x%2Fy~3", "a", "a~3", "a~2", "x%2Fy"]
    assert replaced == [0, 1, 3]


def test_long_ids_are_cut_and_told_apart_by_their_digest():
    ids = ["a" * 20, "a" * 21, "a" * 21 + "b", "é" * 11]
    keys, replaced = unique_keys(ids, FILES)
    assert keys[0] == ids[0] and replaced == [1, 2, 3]
    assert keys[1] == "aaa~" + hashlib.sha256(ids[1].encode()).hexdigest()[:16]
    assert len(set(keys)) == 4 and max(len(key.encode()) for key in keys) <= 20
    assert len(set(unique_keys(["é" * 11] * 300, FILES)[0])) == 300


@given(
    st.lists(st.text("ab/\0.~%2F0é", max_size=6), max_size=20),
    st.sampled_from([H5, FILES, Rule(), Rule(longest=30)]),
)
def test_keys_are_unique_and_can_be_keys_and_no_other_is_replaced(ids, rule):
    keys, replaced = unique_keys(ids, rule)
    assert len(set(keys)) == len(keys) == len(ids)
    assert all(map(rule.admits, keys))
    assert [row for row in range(len(ids)) if keys[row] != ids[row]] == replaced
    assert not [row for row in replaced if rule.admits(ids[row]) and ids[row] not in ids[:row]]


@pytest.mark.parametrize(
    ("record_id", "expected"),
    [
        ("sp|P12345|NAME_HUMAN", "P12345"),
        ("tr|A0A0B4J2F0|X", "A0A0B4J2F0"),
        ("sp|P12345-2|ISO", "P12345-2"),
        ("gi|123|ref", "123"),
        ("P12345", "P12345"),
        ("a||b", "a||b"),
    ],
)
def test_accessions_are_what_stands_between_bars(record_id, expected):
    assert accession(record_id) == expected


def test_biotrainers_hash_is_of_sequence_and_length():
    assert biotrainer_hash(b"MKT") == hashlib.sha256(b"MKT_3").hexdigest()
    assert first_rows(["a", "b", "a", "c", "b"]) == [0, 1, 3]
