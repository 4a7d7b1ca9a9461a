from compress3d.splats.evaluate import SceneFile
from compress3d.splats.viewer.appearance import Scale
from compress3d.splats.viewer.statistics import budget_line, legend, statistics

FILE = SceneFile("<b>&.ply", 2000, 2, 64_000, {"means": 64_000})


def test_names_are_escaped_and_counts_given() -> None:
    table = statistics([FILE], [2000])
    assert "&lt;b&gt;&amp;.ply" in table and "<b>&." not in table
    assert "2,000" in table and "64 kB" in table and "32.0" in table and "drawn" not in table
    assert "drawn" in statistics([FILE, FILE], [2000, 500])


def test_the_budget_is_the_count_and_its_bytes() -> None:
    line = budget_line(FILE, 1000, 250)
    assert "250" in line and "25.0 %" in line and "750 go" in line and "8 kB" in line and "32 kB" in line


def test_a_legend_has_both_ends() -> None:
    assert "least" in legend("rank", None) and "logarithmic" not in legend("rank", None)
    bar = legend("error", Scale(0.125, 3, True), "world units")
    assert "0.125" in bar and "3 world units" in bar and "logarithmic" in bar
