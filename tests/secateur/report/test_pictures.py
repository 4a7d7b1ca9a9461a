import numpy as np

from secateur.report.pictures import error_scale, heat_map, palette_stops


def test_the_scale_fits_the_errors_but_for_a_few() -> None:
    errors = np.full((100, 100), 5.0, np.float32)
    assert error_scale([errors]) == 8
    errors[0, 0] = 255.0
    assert error_scale([errors]) == 8
    assert error_scale([errors, errors + 50]) == 64
    assert error_scale([]) == 8


def test_the_map_is_dark_without_error_and_brighter_with_more() -> None:
    levels = heat_map(np.array([[0.0, 4.0, 16.0, 400.0]], np.float32), scale=16)[0].astype(int).sum(axis=-1)
    assert levels[0] < 10 and levels[0] < levels[1] < levels[2]
    assert levels[2] == levels[3]


def test_the_colour_bar_runs_over_the_map() -> None:
    ends = heat_map(np.array([[0.0, 32.0]], np.float32), scale=32)[0].tolist()
    stops = palette_stops(5)
    assert len(stops) == 5
    assert [stops[0], stops[-1]] == [f"rgb({red} {green} {blue})" for red, green, blue in ends]
