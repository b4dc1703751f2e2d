import re

import numpy as np
import pytest

from packedesm.report.axes import Axes, Axis, Entry, Legend, round_ticks
from packedesm.report.svg import HEIGHT, WIDTH, colour, drawn, text

INK = colour("ink")


def plane(**options) -> Axes:
    ticks = [(0, "0"), (10, "10")]
    return Axes(Axis(0, 10, "across", ticks), Axis(1, 100, "up", log=True), **options)


def corners(element: str) -> np.ndarray:
    (path,) = re.findall(r' d="M([^"]*)Z"', element)
    return np.array([point.split() for point in path.split("L")], dtype=float)


def test_values_lie_in_proportion_on_a_linear_axis_and_by_their_ratio_on_a_logarithmic_one():
    axes = plane()
    left, middle, right = axes.across(np.array([0, 5, 10]))
    assert 0 < left < right < WIDTH
    assert middle - left == pytest.approx(right - middle)
    low, ten, high = axes.down(np.array([1, 10, 100]))
    assert 0 < high < low < HEIGHT  # up is up
    assert low - ten == pytest.approx(ten - high)


def test_a_bar_fills_what_is_between_its_values():
    axes = plane()
    axes.bar((2, 4), (1, 10), INK)
    found = corners(axes.marks[0])
    np.testing.assert_allclose(found.min(0), [axes.across(2), axes.down(10)], atol=0.051)
    np.testing.assert_allclose(found.max(0), [axes.across(4), axes.down(1)], atol=0.051)


def test_steps_stand_on_the_axis_and_reach_their_heights():
    axes = plane()
    axes.steps(np.array([0, 3, 10]), np.array([10, 100]), INK)
    found, floor = corners(axes.marks[0]), axes.down(1)
    x, y = axes.across(np.array([0, 0, 3, 3, 10, 10])), axes.down(np.array([10, 10, 100, 100]))
    np.testing.assert_allclose(found, np.stack([x, [floor, *y, floor]], axis=1), atol=0.051)


@pytest.mark.parametrize("shape", ["circle", "cross", "plus", "hexagon"])
def test_a_marker_is_about_its_place(shape):
    axes = plane()
    axes.dots([(5, 10)], INK, shape)
    (mark,) = axes.marks
    middle = (
        np.array(re.findall(r'c[xy]="([^"]*)"', mark), dtype=float)
        if shape == "circle"
        else corners(mark).mean(0)
    )
    np.testing.assert_allclose(middle, [axes.across(5), axes.down(10)], atol=0.1)


@pytest.mark.parametrize("title", [None, "a title"])
def test_a_legend_takes_room_and_covers_nothing(title):
    axes = plane(
        legend=Legend([Entry("one kind", INK, "bar"), Entry("other", INK, "up")], 2, title)
    )
    bare = plane()
    assert (axes.across(10) < bare.across(10) - 50) == (title is not None)
    assert (axes.down(100) > bare.down(100)) == (title is None)
    places = re.findall(
        r'<text x="([^"]*)" y="([^"]*)"[^>]*>(?:one kind|other|a title)<', "\n".join(axes.elements)
    )
    assert len(places) == 2 + (title is not None)
    for x, y in np.array(places, dtype=float):
        assert x > axes.across(10) if title else y < axes.down(100)
        assert 0 < x < WIDTH and 0 < y < HEIGHT


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "found"),
    [
        (0, 3.4, 5, True, [0, 1, 2, 3]),
        (0, 1.1, 5, True, [0, 1]),
        (0, 100, 4, False, [0, 25, 50, 75, 100]),
        (7, 36, 7, False, [10, 15, 20, 25, 30, 35]),
        (0, 2e-3, 4, False, [0, 0.0005, 0.001, 0.0015, 0.002]),
    ],
)
def test_ticks_are_round_and_few(low, high, most, whole, found):
    ticks = round_ticks(low, high, most, str, whole=whole)
    assert [value for value, _ in ticks] == pytest.approx(found)
    assert [said for _, said in ticks] == [str(value) for value, _ in ticks]


def test_text_of_the_user_stays_text():
    assert "<b>" not in text(0, 0, "<b>&") and "&lt;b&gt;&amp;" in text(0, 0, "<b>&")
    assert text(0, 0, "two\nlines").count("<text") == 2


def test_a_colour_that_the_page_has_not_is_a_mistake():
    with pytest.raises(ValueError, match="pink"):
        colour("pink")


def test_a_drawing_says_what_it_shows():
    svg = drawn('What is "shown"')(plane)()
    assert svg.startswith("<svg ") and svg.endswith("</svg>")
    assert 'aria-label="What is &quot;shown&quot;"' in svg
