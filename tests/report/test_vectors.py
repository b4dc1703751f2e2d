import numpy as np
import pytest

from packedesm.files import read_record
from packedesm.report.flagged import SHOWN, first_flagged
from packedesm.report.vectors import (
    COMPARED,
    Vectors,
    apart,
    principal_components,
    ranges,
    read_vectors,
)
from packedesm.report.words import meaning_of_error, percent, rounded
from tests.report.finished_run import write_run

rng = np.random.default_rng(3)


def vectors(values, sequences=None) -> Vectors:
    names = sequences or [str(row) for row in range(len(values))]
    return Vectors("mean", np.asarray(values, float), np.ones(len(values), int), names, names, 0)


def test_principal_components_are_the_directions_of_largest_variance():
    axes, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    along = rng.standard_normal((200, 5)) * [9, 4, 0.5, 0.2, 0.1]
    along -= along.mean(axis=0)
    coordinates, shares = principal_components(100 + along @ axes.T)
    variance = coordinates.var(axis=0)
    assert variance / along.var(axis=0)[:2] == pytest.approx([1, 1], rel=0.01)
    assert shares == pytest.approx(variance / along.var(axis=0).sum())
    assert abs(np.corrcoef(coordinates[:, 0], along[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(coordinates[:, 1], along[:, 1])[0, 1]) > 0.99


def test_principal_components_do_not_mirror_when_rows_change_places():
    values = rng.standard_normal((50, 8))
    order = rng.permutation(50)
    assert principal_components(values[order])[0] == pytest.approx(
        principal_components(values)[0][order]
    )


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-30])
def test_vectors_that_are_all_the_same_have_no_components(value):
    values = np.full((4, 6), value) * [1, 2, 3, 4, 5, 6]
    coordinates, shares = principal_components(values)
    assert not coordinates.any() and not shares.any()


def test_of_many_vectors_the_components_are_those_of_the_whole_decomposition():
    """Also where the next directions hold nearly as much."""
    along = rng.standard_normal((3000, 60)) * np.linspace(3, 1, 60)
    values = (along @ np.linalg.qr(rng.standard_normal((60, 60)))[0] + 5).astype(np.float32)
    coordinates, shares = principal_components(values, 4)
    centred = values - values.mean(axis=0, dtype=np.float64)
    _left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    assert shares == pytest.approx(sizes[:4] ** 2 / (sizes**2).sum(), rel=1e-4)
    expected = centred @ axes[0]
    assert abs(np.corrcoef(coordinates[:, 0], expected)[0, 1]) > 0.999


def test_two_vectors_have_one_component():
    coordinates, shares = principal_components(np.array([[0.0, 3, 0], [4.0, 0, 0]]))
    assert shares == pytest.approx([1, 0])
    assert np.ptp(coordinates, axis=0) == pytest.approx([5, 0])


def test_distances_are_over_the_mean_length_of_two_vectors():
    found = apart(vectors([[3.0, 0], [0, 4], [3, 4]]))
    assert found.proteins == 3
    assert found.median == pytest.approx(4 / 4)  # of 5 / 3.5, 4 / 4 and 3 / 4.5
    assert found.close == pytest.approx(3 / 4.5, rel=0.02)


def test_repeats_of_a_sequence_are_one_protein():
    assert apart(vectors([[3.0, 0], [3, 0], [3, 0]], ["a", "a", "a"])) is None
    found = apart(vectors([[3.0, 0], [3, 0], [0, 4]], ["a", "a", "b"]))
    assert (found.proteins, found.close) == (2, pytest.approx(5 / 3.5))


def test_of_many_proteins_a_part_is_compared():
    assert apart(vectors(rng.standard_normal((COMPARED + 50, 4)))).proteins == COMPARED


def test_vectors_are_read_evenly_over_the_rows_and_without_what_is_no_number(tmp_path, monkeypatch):
    points = 500
    monkeypatch.setattr("packedesm.report.vectors.POINTS", points)
    records = 2 * points + 1
    fasta = "".join(
        f">r{row}\n{'MKV' * (1 + row % 7)}{'A' * (row // 7)}\n" for row in range(records)
    )

    def rows(shape, dtype):
        array = np.repeat(np.arange(shape[0], dtype=dtype)[:, None], shape[1], axis=1)
        array[2 * 10] = np.nan
        return array

    paths = write_run(tmp_path, fasta, 1, vectors=rows, deduplicate=False, max_length=5000)
    found = read_vectors(paths, "mean", read_record(paths.merging)["sha256"])
    shown = np.linspace(0, records - 1, points).astype(int)
    shown = shown[shown != 20]
    assert found.values[:, 0].tolist() == shown.tolist()
    assert found.not_finite == 1
    assert found.ids == [f"r{row}" for row in shown.tolist()]
    assert found.lengths.tolist() == [3 * (1 + row % 7) + row // 7 for row in shown.tolist()]


@pytest.mark.parametrize(
    ("lengths", "labels"),
    [
        ([7], ["7"]),
        ([7, 7, 7], ["7"]),
        ([5, 9], ["5", "9"]),
        (range(1, 101), ["1 to 20", "21 to 40", "41 to 60", "61 to 80", "81 to 100"]),
        ([*[10] * 90, 2000], ["10", "2,000"]),
        ([-0.25, 1 / 3, 1.0], ["-0.25", "0.333", "1"]),
    ],
)
def test_numbers_are_grouped_from_low_to_high_and_each_is_in_one_group(lengths, labels):
    lengths = np.array(lengths)
    groups = ranges(lengths)
    assert [label for label, _members in groups] == labels
    assert (sum(members.astype(int) for _label, members in groups) == 1).all()


def test_the_first_records_of_each_flag_are_found_and_no_flag_is_taken_for_another(tmp_path):
    fasta = "".join(f">s{row}\nMKV*\n" for row in range(SHOWN + 5)) + ">j\nMJ*V\n>plain\nMKVA\n"
    paths = write_run(tmp_path, fasta, 1)
    counts = {"stop_removed": SHOWN + 5, "j_replaced": 1, "stop_replaced": 1, "float32": 0}
    found = first_flagged(paths.index, counts | {"stop": 1})
    assert [record["id"] for record in found["stop_removed"]] == [f"s{row}" for row in range(SHOWN)]
    assert [record["id"] for record in found["j_replaced"]] == ["j"]
    assert [record["id"] for record in found["stop_replaced"]] == ["j"]
    assert found["stop"] == []  # the beginning of two others
    assert "float32" not in found


def test_what_an_error_means_depends_on_how_far_close_proteins_are_apart():
    found = apart(vectors([[3.0, 0], [3, 0.3]]))  # 0.1 apart
    meanings = [meaning_of_error(error, found) for error in (0.0, 1e-6, 1e-3, 1e-2)]
    assert meanings[0] == meanings[1]
    assert len(set(meanings)) == 3
    assert "not small" in meanings[3]


def test_only_what_is_complete_looks_complete():
    assert percent(0.99999) == "> 99.9%"
    assert percent(1.0) == "100.0%"
    assert percent(None) == "unknown"
    assert rounded(898_231.0) == "900,000"
