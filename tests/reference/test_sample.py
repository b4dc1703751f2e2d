"""Which records are verified, and how many of them."""

from pathlib import Path

import numpy as np
import pytest

from packedesm.options import ReferenceOptions, ShardOptions
from packedesm.paths import Paths
from packedesm.reference.sample import Sample, choose, draw
from packedesm.sequences.partition import token_cost
from packedesm.sequences.shards import write_shards
from tests import typed

WIDTH = 480
LIMIT = 1022
POLICY = typed.policy(max_length=LIMIT)


def options(sequences="auto", **config) -> ReferenceOptions:
    return typed.options(ReferenceOptions, **{"verify": {"sequences": sequences}, **config})


def cost(lengths) -> np.ndarray:
    return token_cost(np.minimum(lengths, LIMIT) + 2, WIDTH)


def drawn(lengths, *asked):
    """Return the rows that are drawn where all are embedded, and what is told of them."""
    rows, told = draw(lengths, cost(lengths).sum(), WIDTH, options(*asked))
    assert told.share == pytest.approx(cost(lengths[rows]).sum() / cost(lengths).sum(), abs=1e-6)
    assert (told.sequences, told.records) == (len(rows), len(lengths))
    return rows, told


def proteins(count: int, seed: int = 3) -> np.ndarray:
    """Lengths as UniProt has them, about one in twelve of them above the limit."""
    return np.random.default_rng(seed).lognormal(5.9, 0.75, count).astype(np.int64) + 2


def test_sample_holds_shortest_longest_and_each_stratum_of_lengths():
    lengths = np.random.default_rng(5).permutation(np.arange(10, 1010))
    rows = choose(lengths, POLICY, 16, seed=1)
    chosen = np.sort(lengths[rows])
    assert len(set(rows.tolist())) == 16
    assert (chosen[0], chosen[-1]) == (10, 1009)
    # 998 lengths in 14 strata of 71 or 72: neighbours are never two strata apart.
    assert np.diff(chosen).max() < 2 * 72
    assert choose(lengths, POLICY, 16, seed=1).tolist() == rows.tolist()
    assert choose(lengths, POLICY, 16, seed=2).tolist() != rows.tolist()


@pytest.mark.parametrize("records", range(1, 9))
@pytest.mark.parametrize("count", range(10))
@pytest.mark.parametrize("above", range(0, 9, 2))
def test_sample_has_no_record_twice(records, count, above):
    lengths = np.where(np.arange(records) < above, LIMIT + 1, 7)
    rows = choose(lengths, POLICY, count, seed=0)
    assert len(set(rows.tolist())) == len(rows) == min(records, count)
    assert all(0 <= row < records for row in rows)


def test_one_record_is_the_longest():
    assert choose(np.array([5, 9, 2]), POLICY, 1, seed=0).tolist() == [1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.08, 0.3, 0.49])
def test_one_record_at_the_length_limit_is_enough(seed, share):
    lengths = np.random.default_rng(seed).permutation(np.arange(400)) + 1 + LIMIT - 400
    lengths += int(400 * share)
    chosen = lengths[choose(lengths, POLICY, 16, seed)]
    assert (chosen >= LIMIT).sum() == 1
    assert lengths.max() in chosen
    # The strata go up to those that are just below it.
    assert chosen[chosen < LIMIT].max() >= LIMIT - 400 / 14


def test_where_most_records_are_at_the_limit_one_does_not_stand_for_them():
    lengths = np.concatenate([np.arange(100, 150), np.arange(5000, 5150)])
    rows = choose(lengths, POLICY, 16, seed=0)
    assert (lengths[rows] > LIMIT).sum() >= 11
    library = np.full(5000, 300)  # variants of one protein
    assert len(np.unique(choose(library, POLICY, 16, seed=0) // 500)) >= 9


@pytest.mark.parametrize("count", [30, 60, 90, 120])
def test_by_itself_a_run_verifies_what_takes_a_tenth_of_its_work(count):
    lengths = proteins(count)
    rows, told = drawn(lengths)
    assert 4 <= len(rows) < 16
    assert (told.asked, told.most_share) == (16, 0.1)
    assert {lengths.min(), lengths.max()} <= {*lengths[rows].tolist()}
    assert len(rows) == 4 or told.share <= 0.1
    _more, told = drawn(lengths, len(rows) + 1)
    assert told.share > 0.1
    assert told.most_share is None


def test_four_records_are_verified_in_any_case_and_sixteen_of_many():
    few = proteins(10)
    rows, told = drawn(few)
    assert (len(rows), told.most_share) == (4, 0.1)
    assert told.share > 0.1
    rows, told = drawn(proteins(3))
    assert (len(rows), told.most_share) == (3, None)
    rows, told = drawn(proteins(1000))
    assert (len(rows), told.most_share) == (16, None)


@pytest.mark.parametrize("asked", [1, 5, 16, 64, 1000])
def test_a_number_is_obeyed_as_it_stands(asked):
    lengths = proteins(120)
    rows, told = drawn(lengths, asked)
    assert len(rows) == min(asked, 120)
    assert (told.asked, told.most_share) == (asked, None)


def test_the_sample_is_told_in_words():
    lengths = proteins(120)
    rows, told = drawn(lengths)
    assert told.in_words() == (
        f"{len(rows)} of 120 proteins; asked for 16, limited to 10% of the run's operations"
    )
    assert drawn(proteins(10))[1].in_words() == (
        "4 of 10 proteins; asked for 16, limited to 10% of the run's operations and at least 4"
    )
    assert drawn(lengths, 64)[1].in_words() == "64 of 120 proteins"
    assert drawn(proteins(1))[1].in_words() == "1 of 1 protein"


def sharded(root: Path, lengths, shards: int, **config) -> Sample:
    """Write shards of proteins of these lengths; those of one length are equal."""
    root.mkdir()
    fasta = root / "in.fasta"
    fasta.write_text("".join(f">{n}\n{'M' * length}\n" for n, length in enumerate(lengths)))
    paths = Paths(root / "out")
    write_shards([fasta], paths, typed.options(ShardOptions, **config), shards=shards, width=WIDTH)
    return Sample(paths, shards, options(**config), WIDTH)


def test_the_sample_is_the_same_in_any_number_of_shards(tmp_path):
    lengths = np.unique(proteins(100))
    found = []
    for shards in (1, 3, 7):
        sample = sharded(tmp_path / str(shards), lengths, shards)
        found.append((sample.without([]), sample.drawn))
    assert found[0] == found[1] == found[2]
    rows, told = drawn(lengths)
    assert found[0] == (rows.tolist(), told)
    assert told.most_share == 0.1


def test_repeats_are_no_work_of_the_run_and_masked_passes_are(tmp_path):
    lengths = np.unique(proteins(100))
    told = sharded(tmp_path / "repeats", [*lengths] * 2, 2).drawn
    assert told.records == 2 * len(lengths)
    assert told.most_share == 0.1
    assert sharded(tmp_path / "all", [*lengths] * 2, 2, deduplicate=False).drawn.sequences == 16
    masked = ["mean", "pseudo_perplexity"]
    assert sharded(tmp_path / "masked", lengths[:16], 1, outputs=masked).drawn.sequences == 16


def test_what_does_not_fit_is_replaced_by_what_is_cut_shorter_too(tmp_path):
    """Of two records that are cut at the limit the shorter one would take the same memory."""
    sample = sharded(tmp_path / "in", (8000, 4000, 2000, 840, 240), 1, verify={"sequences": 1})
    ((record, _sequence),) = sample.read(sample.without([]))
    assert (record["length"], record["embedded_length"]) == (8000, LIMIT)
    assert sample.replace(record)["by"] == 3
