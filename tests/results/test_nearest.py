import numpy as np
import pytest

from packedesm.results.nearest import Exact, Vectors, nearest, ragged

K = 5


def vectors(values, proteins=None, same_as=None) -> Vectors:
    own = np.arange(len(values))
    return Vectors(
        np.asarray(values),
        own if proteins is None else np.asarray(proteins),
        own if same_as is None else np.asarray(same_as),
    )


def found(targets, queries=None, k=K, block=None, most_queries=2048) -> list[tuple]:
    """Return (query, row, rank, cosine) of all that is found."""
    parts = nearest(targets, queries, k, Exact(targets, block), most_queries)
    return [
        line
        for part in parts
        for line in zip(
            part.queries.tolist(),
            part.rows.tolist(),
            part.ranks.tolist(),
            part.cosines.tolist(),
            strict=True,
        )
    ]


def plainly(targets: Vectors, queries: Vectors | None = None, k=K) -> list[tuple]:
    """The same by loops over pairs, in float64."""
    alone, asked, lines = queries is None, queries or targets, []
    for query, one in enumerate(asked.values.astype(np.float64)):
        near, same = [], []
        for row, other in enumerate(targets.values.astype(np.float64)):
            with np.errstate(all="ignore"):
                cosine = one @ other / np.sqrt((one @ one) * (other @ other))
            if asked.proteins[query] == targets.proteins[row]:
                same += [] if alone and query == row else [(query, row, 0, cosine)]
            elif np.isfinite(cosine):
                near.append((-cosine, row, cosine))
        lines += same[:k]
        near.sort()
        lines += [
            (query, row, place + 1, cosine) for place, (_, row, cosine) in enumerate(near[:k])
        ]
    return lines


@pytest.fixture(scope="module")
def odd() -> Vectors:
    """Vectors of zeros, NaN and infinity, copies, one that two proteins share, and a repeat."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((150, 24)) * 0.3 + rng.standard_normal(24)
    values = values.astype(np.float32)
    values[5], values[9], values[11, 3] = 0, np.nan, np.inf
    proteins, same_as = np.arange(150), np.arange(150)
    for copy in (70, 71, 149):
        values[copy], proteins[copy], same_as[copy] = values[40], 40, 40
    values[90] = values[80]
    proteins[100] = 99  # one sequence, computed twice
    return vectors(values, proteins, same_as)


@pytest.mark.parametrize(("block", "most_queries"), [(None, 2048), (13, 7), (1, 150), (149, 1)])
def test_the_nearest_are_those_of_a_plain_loop_whatever_the_blocks(odd, block, most_queries):
    lines, expected = found(odd, None, K, block, most_queries), plainly(odd)
    assert [line[:3] for line in lines] == [line[:3] for line in expected]
    np.testing.assert_allclose([line[3] for line in lines], [line[3] for line in expected], 1e-14)
    assert repr(lines) == repr(found(odd))  # to the last bit


def test_a_protein_without_direction_has_no_neighbours_and_is_none(odd):
    lines = found(odd)
    ranked = [line for line in lines if line[2]]
    assert not {5, 9, 11} & {place for line in ranked for place in line[:2]}
    assert {line[0] for line in ranked} == set(range(150)) - {5, 9, 11}


def test_duplicates_take_no_place_and_come_first(odd):
    lines = [line[1:3] for line in found(odd) if line[0] == 70]
    assert lines[:3] == [(40, 0), (71, 0), (149, 0)]
    assert [rank for _row, rank in lines[3:]] == [1, 2, 3, 4, 5]
    assert (99, 0) in [line[1:3] for line in found(odd) if line[0] == 100]


def test_of_very_many_duplicates_the_first_are_told():
    same = vectors(np.ones((30, 3), np.float32), np.zeros(30), np.zeros(30, int))
    lines = found(same, k=2)
    assert [line[:3] for line in lines[:4]] == [(0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 2, 0)]
    assert len(lines) == 60


def test_ties_stand_in_the_order_of_rows():
    tied = vectors(np.ones((20, 4), np.float16))
    assert [line[:3] for line in found(tied, k=3)][:6] == [
        *((0, 1, 1), (0, 2, 2), (0, 3, 3)),
        *((1, 0, 1), (1, 2, 2), (1, 3, 3)),
    ]
    assert found(tied, k=3, block=3, most_queries=4) == found(tied, k=3)
    copied = vectors(np.ones((6, 4)), [0, 1, 2, 3, 1, 5], [0, 1, 2, 3, 1, 5])
    assert [line[1] for line in found(copied) if line[0] == 0] == [1, 2, 3, 4, 5]


def test_what_float32_cannot_tell_apart_is_told_apart():
    """Cosines that differ by 1e-8, of which products in float32 are noise."""
    rng = np.random.default_rng(2)
    values = np.ones((300, 640)) + 3e-4 * rng.standard_normal((300, 640))
    values[::2] *= -1  # so that the mean is none of them
    close = vectors(values.astype(np.float32))
    cosines = [[line[3] for line in lines] for lines in (found(close, block=64), plainly(close))]
    np.testing.assert_allclose(*cosines, rtol=0, atol=3e-15)


@pytest.mark.parametrize("k", [3, 4, 100])
def test_there_are_no_more_neighbours_than_others(k):
    four = vectors(np.eye(4, dtype=np.float32) + 1)
    assert [line[:3] for line in found(four, k=k)] == [line[:3] for line in plainly(four, k=3)]
    assert found(vectors(np.ones((1, 3))), k=k) == []
    assert found(vectors(np.zeros((2, 3))), k=k) == []


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_queries_of_other_results_find_their_duplicates_and_their_neighbours(odd, dtype):
    rng = np.random.default_rng(3)
    values = np.concatenate([odd.values[[40, 80, 5]], rng.standard_normal((6, 24))]).astype(dtype)
    queries = vectors(values, [40, 1000, 5, *range(2000, 2006)])
    lines, expected = found(odd, queries, block=11), plainly(odd, queries)
    assert [line[:3] for line in lines] == [line[:3] for line in expected]
    assert [line[1:3] for line in lines[:4]] == [(40, 0), (70, 0), (71, 0), (149, 0)]
    assert (1, 80, 1) in [line[:3] for line in lines]  # another sequence with the same vector


def test_very_short_and_very_long_vectors_have_directions():
    values = np.array([[1e-30, 0], [1e30, 2e30], [0, 3e38], [-1e-38, 1e-38]], np.float32)
    assert [line[:3] for line in found(vectors(values), k=3)] == [
        *((0, 1, 1), (0, 2, 2), (0, 3, 3)),
        *((1, 2, 1), (1, 0, 2), (1, 3, 3)),
        *((2, 1, 1), (2, 3, 2), (2, 0, 3)),
        *((3, 2, 1), (3, 1, 2), (3, 0, 3)),
    ]


def test_the_nearest_are_those_of_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    values = np.random.default_rng(4).standard_normal((300, 32))
    theirs = neighbors.NearestNeighbors(n_neighbors=K, metric="cosine").fit(values)
    expected = theirs.kneighbors(return_distance=False)
    lines = found(vectors(values))
    assert np.array([line[1] for line in lines]).reshape(300, K).tolist() == expected.tolist()


def test_lists_of_any_lengths_have_their_items_counted():
    which, place = ragged(np.array([2, 0, 3]))
    assert which.tolist() == [0, 0, 2, 2, 2]
    assert place.tolist() == [0, 1, 0, 1, 2]
