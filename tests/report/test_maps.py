import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from packedesm.options import ReportOptions
from packedesm.report.annotations import Annotations
from packedesm.report.maps import Plane, draw_maps, length_groups, value_groups, vectors_by_value
from packedesm.report.svg import COLOURS, colour
from packedesm.report.vectors import Vectors

PCA = ReportOptions("pca", "none", "none", 1)
rng = np.random.default_rng(1)


def vectors(count: int, width: int = 8) -> Vectors:
    names = [f"p{row}" for row in range(count)]
    values = rng.standard_normal((count, width)).astype(np.float32)
    return Vectors("mean", values, np.arange(1, count + 1), names, names, 0)


def drawn(count: int) -> str:
    return draw_maps(vectors(count), None, PCA)[1]["vectors"]


def paint(name: str) -> str:
    return colour(name)


def test_every_vector_is_a_dot_unless_another_is_there_already():
    dots = re.findall(r"M\d+\.\d \d+\.\dh0", drawn(300))
    assert 280 <= len(set(dots)) == len(dots) <= 300


def test_twenty_thousand_dots_are_no_weight():
    assert len(drawn(20_000)) < 350_000


@pytest.mark.parametrize(
    ("values", "labels", "paints"),
    [
        (["a", "b", "a", None], ["no value", "a", "b"], ["none", "kind-1", "kind-2"]),
        (["1", "2", "1", "2"], ["1", "2"], ["kind-1", "kind-2"]),
        (
            [*map(str, range(10))],
            ["0 to 1", "2 to 3", "4 to 5", "6 to 7", "8 to 9"],
            [f"length-{k}" for k in range(1, 6)],
        ),
        ([*map(str, range(9)), None, "nan"], None, None),
        (
            [*"abcdefgh", "h"],
            ["others", *"habcdef"],
            ["others", *(f"kind-{k}" for k in range(1, 8))],
        ),
        ([None, None], ["no value"], ["none"]),
    ],
)
def test_proteins_are_grouped_by_names_or_numbers_each_once(values, labels, paints):
    groups = value_groups(values)
    if labels is not None:
        assert [group.label for group in groups] == labels
        assert [group.paint for group in groups] == [paint(name) for name in paints]
    assert (sum(group.members.astype(int) for group in groups) == 1).all()


def test_what_is_no_finite_number_makes_names_of_all():
    groups = value_groups([*map(str, range(9)), None, "nan"])
    assert [group.label for group in groups][:3] == ["no value", "others", "0"]


def test_names_of_the_user_are_shown_as_they_are():
    names = [
        "$a$ \\alpha",
        "_hidden",
        "<b>&",
        "\x1b[31m",
        "日本",
        "a long name of a family of proteins",
    ]
    groups = value_groups(names)
    plane = Plane(rng.standard_normal((len(names), 2)), "", "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        svg = vectors_by_value(plane, groups, "$x$")
    for text in ("$a$", "_hidden", "&lt;b&gt;&amp;", "\\x1b[31m"[1:], "日本", "a long name of a…"):
        assert text in svg, text
    assert "\x1b" not in svg


def test_a_column_makes_a_second_figure_and_missing_values_are_counted():
    known = Annotations(Path("t.tsv"), "", "family", {"p0": "x", "p3": "y"}, {"p0", "p3"})
    said, figures = draw_maps(vectors(5), known, PCA)
    assert [*figures] == ["vectors", "vectors_by_value"]
    assert (said["column"], said["file"], said["without"]) == ("family", "t.tsv", 3)
    ids = [set(re.findall(r'id="([^"]*)"', svg)) for svg in figures.values()]
    assert not ids[0] & ids[1]


def test_lengths_take_the_colours_of_long_proteins_last():
    assert [group.paint for group in length_groups(np.array([5, 9]))] == [
        paint("length-4"),
        paint("length-5"),
    ]
    assert set(COLOURS) >= {"kind-7", "none"}
