import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.report.page import Plot, Point
from secateur.report.plot import render_plot
from secateur.report.plot_axis import axis_of
from secateur.report.plot_labels import place_labels

coordinates = st.floats(-1e6, 1e6) | st.just(math.inf)


@given(st.lists(st.tuples(coordinates, coordinates), max_size=6))
def test_finite_points_are_drawn_inside(places: list[tuple[float, float]]) -> None:
    svg = render_plot(Plot("t", "x", "y", tuple(Point(x, y, "p") for x, y in places)))
    drawn = re.findall(r'<circle class="point" cx="([-\d.]+)" cy="([-\d.]+)"', svg)
    assert len(drawn) == sum(math.isfinite(x + y) for x, y in places)
    for x, y in drawn:
        assert 0 <= float(x) <= 440 and 0 <= float(y) <= 280
    assert "nan" not in svg and "inf" not in svg


@pytest.mark.parametrize("values", [(1.0, 1.8e-301), (1.0, 5e-324), (1e300, 1.7e308, 1.0)])
def test_axes_reach_as_far_as_floats(values: tuple[float, ...]) -> None:
    axis = axis_of(values, 0.0, 400.0)
    assert axis.ticks and all(0 <= axis(value) <= 400 for value in (*values, *axis.ticks))


def test_more_is_higher_and_further_right() -> None:
    svg = render_plot(Plot("t", "x", "y", (Point(2, 40, "b"), Point(1, 30, "a"))))
    (x0, y0), (x1, y1) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(x0) < float(x1) and float(y0) > float(y1)


def test_the_plot_says_in_words_what_it_shows() -> None:
    svg = render_plot(Plot("Quality", "MB", "dB", (Point(1.5, 30, "a<b"),)))
    assert 'aria-label="Quality. dB over MB. a&lt;b: 1.5, 30"' in svg


def test_points_named_as_results_are_buttons() -> None:
    plot = Plot("t", "x", "y", (Point(1, 30, "a"), Point(2, 40, "b<"), Point(3, 35, "reference")), "lower", "higher")
    svg = render_plot(plot, {"a": 0, "b<": 1})
    assert re.findall(r'<g class="([a-z ]+)" role="button" tabindex="0" data-result="(\d)"', svg) == [
        ("mark", "0"),
        ("mark", "1"),
    ]
    assert '<g class="mark behind still">' in svg and 'aria-label="b&lt;: 2, 40"' in svg
    assert ">← less is better<" in svg and ">more is better →<" in svg


def test_the_line_goes_through_the_front_only() -> None:
    points = (Point(1, 30, "a"), Point(2, 20, "b"), Point(3, 40, "c"))
    lines = [
        re.findall(r'<polyline class="curve" points="([^"]*)"', render_plot(plot))[0].split()
        for plot in (Plot("t", "x", "y", points, "lower", "higher"), Plot("t", "x", "y", points))
    ]
    assert [len(line) for line in lines] == [2, 3]


def test_decades_are_drawn_by_their_powers() -> None:
    svg = render_plot(Plot("t", "x", "y", (Point(0.01, 1, "a"), Point(1, 2, "b"), Point(100, 3, "c"))))
    places = [float(x) for x in re.findall(r'class="point" cx="([\d.]+)"', svg)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)


@given(st.lists(st.tuples(st.floats(60, 350), st.floats(20, 230)), max_size=12))
def test_names_cover_neither_one_another_nor_points(places: list[tuple[float, float]]) -> None:
    names = [f"candidate {index}" for index in range(len(places))]
    labels = place_labels(names, places, (68, 14, 360, 236))
    boxes = []
    for name, label in zip(names, labels, strict=True):
        if label is None:
            continue
        width = 7.4 * len(name)
        left = label.x - {"start": 0, "mid": width / 2, "end": width}[label.anchor]
        boxes.append((left, label.y - 11, left + width, label.y + 3))
    boxes += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    named = len(boxes) - len(places)
    for index in range(named):
        for other in boxes[index + 1 :]:
            one = boxes[index]
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_names_keep_off_the_line_where_they_can() -> None:
    line = [(100.0, 100.0), (250.0, 130.0)]
    (first, _) = place_labels(["a candidate", "b"], line, (68, 14, 360, 236), line)
    assert first is not None and first.y < 100.0
    (crowded,) = place_labels(["a candidate"], line[:1], (95, 90, 200, 118), line)
    assert crowded is not None
