import math
import re

from hypothesis import given
from hypothesis import strategies as st

from secateur.report.page import Plot, Point
from secateur.report.plot import render_plot

coordinates = st.floats(-1e6, 1e6) | st.just(math.inf)


@given(st.lists(st.tuples(coordinates, coordinates), max_size=6))
def test_finite_points_are_drawn_inside(places: list[tuple[float, float]]) -> None:
    svg = render_plot(Plot("t", "x", "y", tuple(Point(x, y, "p") for x, y in places)))
    drawn = re.findall(r'<circle class="point" cx="([-\d.]+)" cy="([-\d.]+)"', svg)
    assert len(drawn) == sum(math.isfinite(x + y) for x, y in places)
    for x, y in drawn:
        assert 0 <= float(x) <= 440 and 0 <= float(y) <= 280
    assert "nan" not in svg and "inf" not in svg


def test_more_is_higher_and_further_right() -> None:
    svg = render_plot(Plot("t", "x", "y", (Point(2, 40, "b"), Point(1, 30, "a"))))
    (x0, y0), (x1, y1) = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    assert float(x0) < float(x1) and float(y0) > float(y1)


def test_the_plot_says_in_words_what_it_shows() -> None:
    svg = render_plot(Plot("Quality", "MB", "dB", (Point(1.5, 30, "a<b"),)))
    assert 'aria-label="Quality. dB over MB. a&lt;b: 1.5, 30"' in svg
