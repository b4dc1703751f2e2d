"""What the number format changes in vectors, worked out by hand."""

import numpy as np
import pytest

from packedesm.files import read_record, write_record
from packedesm.outputs import Array
from packedesm.paths import Paths
from packedesm.reference.vectors import Protein
from packedesm.report import certificate
from packedesm.report.certificate import certify, measure
from packedesm.report.page import write_report
from packedesm.report.stored import Stored
from tests.report.finished_run import measured, record
from tests.report.test_page import Page

# The mean of these is (0, 0, 10), and hides what the first two lines are off by.
EXPECTED = np.array([[1, 0, 10], [-1, 0, 10], [0, 2, 10], [0, -2, 10]], dtype=float)
OFF = np.array([[0, 0, 0.1], [-0.2, 0, 0], [0, 0, 0], [0, 0, 0]])

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
DEGREES = [0.0, 10.0, 25.0, 45.0, 70.0, 100.0, 135.0]


def at(degrees) -> np.ndarray:
    """Vectors in these directions, of different lengths, which do not matter to a cosine."""
    angles = np.radians(np.array(degrees))
    return (
        np.stack([np.cos(angles), np.sin(angles)], axis=1)
        * np.arange(1.0, len(angles) + 1)[:, None]
    )


def nearest(degrees: list[float], k: int) -> list[set[int]]:
    """The k others in the most similar direction, of each."""
    rows = range(len(degrees))
    return [
        set(sorted({*rows} - {me}, key=lambda row: abs(degrees[row] - degrees[me]))[:k])
        for me in rows
    ]


def certified(root, found: np.ndarray, expected: np.ndarray, name="mean", sequences=None) -> dict:
    """Certify stored vectors of made-up proteins, which are 3, 5, 7, … in the rows."""
    paths, array = Paths(root), Array.named(name)
    rows = range(3, 3 + 2 * len(expected), 2)
    whole = np.full((2 * len(found) + 3, found.shape[1]), 77, found.dtype)
    whole[list(rows)] = found
    np.save(paths.array(name), whole)
    proteins = [
        Protein(row, f"p{row}", 6, 5, sequence, {name: vector})
        for row, sequence, vector in zip(
            rows, sequences or [letter * 6 for letter in LETTERS], expected, strict=False
        )
    ]
    (entry,) = certify(Stored(paths, [array]), proteins, [array, Array.named("residue")])
    assert entry["array"] == name
    return entry


def test_the_mean_of_the_reference_is_taken_from_both():
    figures = measure(EXPECTED + OFF, EXPECTED)
    plain, centred = figures["plain"], figures["centred"]
    assert plain["relative_l2"] == pytest.approx(
        {"median": 0.05 / 101**0.5, "worst": 0.2 / 101**0.5}
    )
    assert centred["relative_l2"] == pytest.approx({"median": 0.05, "worst": 0.2})
    # (1, 0, 0.1) against (1, 0, 0); the second line still points the same way.
    assert centred["cosine"] == pytest.approx({"median": 1.0, "worst": 1 / 1.01**0.5}, abs=1e-12)
    # (-1.2, 0, 10) against (-1, 0, 10).
    worst = (1.2 + 100) / (1.44 + 100) ** 0.5 / 101**0.5
    first = (1 + 101) / (1 + 10.1**2) ** 0.5 / 101**0.5
    assert worst < first
    assert plain["cosine"] == pytest.approx({"median": (1 + first) / 2, "worst": worst}, abs=1e-12)


@pytest.mark.parametrize("at_once", [2, 256])
@pytest.mark.parametrize("moved", [{}, {2: 60.0}, {0: 83.0}, {1: 120.0, 5: 12.0}])
def test_neighbours_are_those_by_the_cosine_of_each_side(moved, at_once, monkeypatch):
    monkeypatch.setattr(certificate, "_QUERIES", at_once)
    now = [moved.get(row, angle) for row, angle in enumerate(DEGREES)]
    same = [len(a & b) for a, b in zip(nearest(DEGREES, 3), nearest(now, 3), strict=True)]
    assert (min(same) == 3) == (not moved)
    assert measure(at(now), at(DEGREES))["neighbours"] == {
        **{"k": 3, "among": 6, "mean": sum(same) / 7},
        **{"fewest": min(same), "place": same.index(min(same))},
    }


@pytest.mark.parametrize(("proteins", "k"), [(3, 1), (4, 1), (20, 9), (21, 10), (600, 10)])
def test_ten_neighbours_are_looked_for_or_half_of_the_others(proteins, k):
    """Were they all others, these would be the same whatever the vectors are."""
    degrees = [90.0 * row / proteins + row % 3 / 1000 for row in range(proteins)]
    found = measure(at(degrees), at(degrees))["neighbours"]
    assert found == {"k": k, "among": proteins - 1, "mean": k, "fewest": k, "place": 0}
    turned = measure(at(degrees)[::-1], at(degrees))["neighbours"]
    assert turned["k"] == k
    strangers = measure(np.random.default_rng(0).permutation(at(degrees)), at(degrees))
    assert strangers["neighbours"]["mean"] < k


def test_who_is_as_near_as_the_last_one_is_the_same():
    tied = [0.0, 10.0, -20.0, 20.0, 90.0]  # from 0, two are 20 degrees away
    assert measure(at([*tied[:2], -20.01, *tied[3:]]), at(tied))["neighbours"]["fewest"] == 2
    assert measure(at([*tied[:3], 20.01, *tied[4:]]), at(tied))["neighbours"]["fewest"] == 2
    # By a cosine, float32 does not tell a hundred-thousandth of a degree, but a hundredth.
    near = [*tied[:3], 20.00001, 90.0]
    assert measure(at([*tied[:2], -20.1, *tied[3:]]), at(near))["neighbours"]["fewest"] == 2
    apart = [*tied[:3], 20.01, 90.0]
    assert measure(at([*tied[:2], -20.1, *tied[3:]]), at(apart))["neighbours"]["fewest"] == 1


def test_only_arrays_with_a_vector_for_each_protein_are_told_and_the_row_is_that_of_the_results(
    tmp_path,
):
    now = [120.0 if row == 1 else angle for row, angle in enumerate(DEGREES)]
    for name in ("mean", "cls", "max", "mean.layer3"):
        entry = certified(tmp_path, at(now).astype(np.float32), at(DEGREES), name)
        assert (entry["proteins"], entry["left_out"]) == (7, None)
        assert (entry["neighbours"]["row"], entry["neighbours"]["fewest"]) == (5, 0)
        assert "place" not in entry["neighbours"]


def test_proteins_of_the_same_embedded_residues_count_once(tmp_path):
    """Else each would be the other's neighbour in any number format, and tie with it in others."""
    sequences = [letter * 6 for letter in LETTERS[:7]]
    twice = [*sequences, *(sequence[:5] + "W" for sequence in sequences)]
    now = [120.0 if row == 1 else angle for row, angle in enumerate(DEGREES)]
    once = certified(tmp_path, at(now), at(DEGREES), sequences=sequences)
    found, expected = (np.concatenate([at(degrees)] * 2) for degrees in (now, DEGREES))
    assert certified(tmp_path, found, expected, sequences=twice) == once
    assert once["proteins"] == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found, _: found.__setitem__((2, 1), np.nan), "is zero or holds what is not"),
        (lambda found, _: found.__setitem__((2, 1), -np.inf), "is zero or holds what is not"),
        (lambda found, _: found.__setitem__(2, 0), "is zero or holds what is not"),
        (lambda _, expected: expected.__setitem__((2, 1), np.nan), "is zero or holds what is not"),
        # As the <cls> token before the first layer.
        (lambda _, expected: expected.__setitem__(slice(None), expected[0]), "the mean of all"),
    ],
)
def test_vectors_that_cannot_be_measured_have_no_figures(tmp_path, change, told):
    found, expected = at(DEGREES), at(DEGREES)
    change(found, expected)
    entry = certified(tmp_path, found, expected)
    assert told in entry["left_out"]
    assert [entry[part] for part in ("plain", "centred", "neighbours")] == [None] * 3


def test_vectors_of_another_width_have_no_figures(tmp_path):
    entry = certified(tmp_path, at(DEGREES)[:, :1], at(DEGREES))
    assert "not as many numbers" in entry["left_out"]


@pytest.mark.parametrize(("proteins", "told"), [(1, "1 different protein "), (2, "2 different")])
def test_of_fewer_than_three_proteins_nothing_is_said(tmp_path, proteins, told):
    entry = certified(tmp_path, at(DEGREES[:proteins]), at(DEGREES[:proteins]))
    assert entry["left_out"].startswith(told)
    assert entry["plain"] is None
    assert certified(tmp_path, at(DEGREES[:3]), at(DEGREES[:3]))["left_out"] is None


def test_without_proteins_there_is_no_certificate(tmp_path):
    assert certify(Stored(Paths(tmp_path), []), [], [Array.named("mean")]) == []


# On the page.


def page(root, *certificate: dict) -> str:
    """The text of the certificate in the report of a run that is said to have it."""
    paths = measured(root, records=[record()])
    verification = read_record(paths.verification)
    write_record(paths.verification, verification | {"certificate": list(certificate)})
    html = write_report(paths).read_text(encoding="utf-8")
    return Page(html.split('id="certificate"')[1].split("<details")[0]).text


def test_the_page_shows_and_explains_each_figure(tmp_path):
    now = [120.0 if row == 1 else angle for row, angle in enumerate(DEGREES)]
    entry = certified(tmp_path, at(now), at(DEGREES))
    assert sum(len(a & b) for a, b in zip(nearest(DEGREES, 3), nearest(now, 3), strict=True)) == 13
    entry["plain"]["relative_l2"] = {"median": 0.25, "worst": 0.5}
    entry["centred"]["cosine"] = {"median": 0.75, "worst": 0.125}
    text = page(tmp_path / "run", entry)
    assert "mean 7 as they are 0.25 0.5 " in text
    assert " 1.9 of 3 0 (row 5) without the mean " in text
    assert " 0.75000000 0.12500000 " in text
    assert "of the 3 proteins whose vectors are nearest" in text
    assert "among the 6 others of the sample; ten of so few would be most of them." in text
    assert "No limit is set on these figures." in text


def test_the_page_says_ten_of_ten_only_where_all_are_the_same(tmp_path):
    degrees = [4.0 * row + row % 3 for row in range(21)]
    entry = measure(at(degrees), at(degrees)) | {"array": "cls", "proteins": 21, "left_out": None}
    entry["neighbours"]["row"] = entry["neighbours"].pop("place")
    text = page(tmp_path / "all", entry)
    assert " 10 of 10 10 without the mean " in text
    assert "among the 20 others of the sample. Who" in text
    entry["neighbours"] |= {"mean": 10 - 1 / 99, "fewest": 9}
    assert " 9.9 of 10 9 (row 0) without the mean " in page(tmp_path / "most", entry)


def test_the_page_says_why_there_are_no_figures(tmp_path):
    text = page(tmp_path / "run", certified(tmp_path, at(DEGREES[:2]), at(DEGREES[:2])))
    assert "mean 2 not measured: 2 different proteins verified; it takes 3 to say" in text
    assert "Same neighbours :" not in text
