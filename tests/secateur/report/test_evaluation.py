from dataclasses import replace

import pytest

from secateur.evaluation.measurements import counted, mean_of
from secateur.evaluation.record import EvaluationRecord, Measurement, Noise, Pair, Subject
from secateur.metrics.interval import Interval
from secateur.report.difference import difference
from secateur.report.evaluation import option_details, whole_page
from secateur.report.html import render_page
from secateur.report.page import Figure, Meter, Number, Page, Point, Result
from secateur.report.pareto import pareto_plots
from secateur.report.parts import part_tables
from secateur.report.plot import pareto_front
from secateur.report.summary import best_of, summary_table
from tests.secateur.report import example

MINUS = "\N{MINUS SIGN}"
TIMES = {"a": 50.0, "b": 60.0, "c": 90.0}


def column(record: EvaluationRecord, label: str) -> list[Number | str]:
    table = summary_table(record)
    assert table is not None
    return [row[table.columns.index(label)] for row in table.rows]  # type: ignore[misc]


def test_the_summary_has_all_candidates_below_the_reference() -> None:
    table = summary_table(example.record())
    assert table is not None
    assert [row[0] for row in table.rows] == [example.REFERENCE, *example.NAMES]
    assert table.columns == ("", "PSNR", "accuracy", "file size", "multiply-adds", "time of a frame")
    assert table.pinned == 1


def test_a_reference_that_was_not_measured_has_no_row() -> None:
    record = example.record()
    photographs = replace(record, reference=Subject("photographs"))
    table = summary_table(photographs)
    assert table is not None and [row[0] for row in table.rows] == list(example.NAMES) and table.pinned == 0
    assert table.note is not None and "how it differs" not in table.note and "★" in table.note
    alone = replace(photographs, candidates=record.candidates[:1], pairs=())
    assert summary_table(alone) is None
    page = whole_page(alone)
    assert page.results[0].figures and "Before and after" not in render_page(page)


def test_options_are_said_in_a_line_each() -> None:
    options = {"sh_keep": 1.0, "sh_degree": None, "recover": {"steps": 4, "rates": {"means": 0.1}}}
    assert option_details(options) == {"Sh keep": "1.0", "Recover": "steps 4, rates (means 0.1)"}


def test_the_best_of_each_column_is_marked() -> None:
    record = example.record()
    sizes = column(record, "file size")
    assert [isinstance(cell, Number) and cell.best for cell in sizes] == [False, False, False, True, False]
    assert best_of(record, "psnr") == {"keep 50%"}
    assert best_of(record, "sh_degree") == frozenset()


def test_what_does_not_differ_from_the_best_beyond_noise_is_marked_too() -> None:
    record = example.record()
    three = replace(record, candidates=record.candidates[1:])
    equal = Pair("psnr", "keep 25%", "keep 10%", Interval(0.1, -0.2, 0.4, 0.95, 5))
    apart = Pair("psnr", "keep 25%", "dearer and worse", Interval(4.0, 3.0, 5.0, 0.95, 5))
    assert best_of(replace(three, pairs=(equal, apart)), "psnr") == {"keep 25%", "keep 10%"}
    assert best_of(replace(three, pairs=(apart,)), "psnr") == {"keep 25%"}


def test_times_without_pairs_are_told_apart_by_their_own_noise() -> None:
    record = example.record()
    times = {name: Measurement(ms, "ms", "lower", "time", noise=Noise("repeats", 7.0)) for name, ms in TIMES.items()}
    candidates = tuple(Subject(name, measurements={"frame": one}) for name, one in times.items())
    assert best_of(replace(record, candidates=candidates), "frame") == {"a", "b"}


def test_nothing_is_best_where_none_differs() -> None:
    record = example.record()
    two = replace(record, candidates=record.candidates[2:])
    assert best_of(two, "psnr") == frozenset()
    assert best_of(replace(two, pairs=(replace(two.pairs[0], difference=Interval(0.7, 0.2, 1.6, 0.95, 5)),)), "psnr")


def test_one_candidate_alone_is_not_the_best() -> None:
    record = example.record()
    assert best_of(replace(record, candidates=record.candidates[:1]), "psnr") == frozenset()


def test_infinite_quality_is_the_best() -> None:
    record = example.record()
    same = mean_of(float("inf"), "dB", "PSNR", "higher")
    equal = replace(record.candidates[3], measurements={"psnr": same})
    record = replace(record, candidates=(*record.candidates[:3], equal), pairs=())
    assert best_of(record, "psnr") == {"dearer and worse"}
    assert column(record, "PSNR")[4] == Number("identical", float("inf"), best=True)


@pytest.mark.parametrize(
    ("one", "before", "text", "tone"),
    [
        (counted(250.0, "bytes", "size"), counted(1000.0, "bytes", "size"), "0.25\N{MULTIPLICATION SIGN}", "better"),
        (
            Measurement(11.0, "ms", "lower", "time", noise=Noise("repeats", 1.0)),
            Measurement(10.0, "ms", "lower", "time", noise=Noise("repeats", 1.0)),
            "1.1\N{MULTIPLICATION SIGN}",
            "",
        ),
        (
            mean_of(0.85, "share", "accuracy", "higher", change=Interval(-0.05, -0.06, -0.04, 0.95, 9)),
            None,
            f"{MINUS}5.00 points [{MINUS}6.00, {MINUS}4.00]",
            "worse",
        ),
        (
            mean_of(0.85, "share", "accuracy", "higher", change=Interval(-0.05, -0.11, 0.01, 0.95, 9)),
            None,
            f"{MINUS}5.00 points [{MINUS}11.00, 1.00]",
            "",
        ),
        (
            mean_of(6.5, "", "FD", "lower", error=0.1),
            mean_of(5.5, "", "FD", "lower", error=0.1),
            "+1",
            "worse",
        ),
        (mean_of(6.5, "", "FD", "lower"), mean_of(5.5, "", "FD", "lower"), "+1", ""),
        (
            mean_of(31.0, "dB", "PSNR", "higher", interval=Interval(31.0, 30.0, 32.0, 0.95, 9)),
            None,
            "[30.00, 32.00]",
            "",
        ),
        (counted(1.0, "bytes", "size"), None, "", ""),
    ],
)
def test_differences_say_whether_they_are_more_than_noise(
    one: Measurement, before: Measurement | None, text: str, tone: str
) -> None:
    found = difference(one, before)
    assert (found.text, found.tone) == (text, tone)


def test_plots_show_quality_over_bytes_work_and_time_with_the_direction_that_is_better() -> None:
    plots = pareto_plots(example.record())
    assert [plot.title for plot in plots] == [
        "PSNR over file size",
        "PSNR over multiply-adds",
        "PSNR over time of a frame",
    ]
    assert [plot.x_label for plot in plots] == [
        "file size in kB",
        "multiply-adds in millions",
        "time of a frame in ms",
    ]
    for plot in plots:
        assert (plot.x_better, plot.y_better) == ("lower", "higher")
        assert [point.name for point in plot.points] == list(example.NAMES)
        assert all(point.interval is not None and point.interval[0] < point.y for point in plot.points)
        front = pareto_front(plot.points, plot.x_better, plot.y_better)
        assert [point.name for point in front] == ["keep 10%", "keep 25%", "keep 50%"]


def test_a_front_keeps_equal_points_and_drops_what_is_only_as_good_in_one() -> None:
    points = [Point(1.0, 1.0, "a"), Point(1.0, 1.0, "b"), Point(1.0, 0.5, "c"), Point(2.0, 1.0, "d")]
    assert [point.name for point in pareto_front(points, "lower", "higher")] == ["a", "b"]
    assert [point.name for point in pareto_front(points, "higher", "higher")] == ["d"]


def test_parts_stand_beside_those_of_the_reference() -> None:
    record = example.record()
    views, attributes = part_tables(record.candidates[0], record.reference)
    assert views.columns == ("View", "PSNR") and views.total is not None and views.total[1] == "39.49 dB"
    assert attributes.columns == ("Attribute", "chair.sog", "keep 50%")
    assert isinstance(attributes.rows[0][2], Meter)


def test_long_parts_show_their_worst_rows() -> None:
    record = example.record()
    part = record.candidates[0].parts["views"]
    count = 5000
    values = tuple(float(index % 977) for index in range(count))
    long = replace(
        part,
        rows=tuple(f"View {index}" for index in range(count)),
        columns={"psnr": replace(part.columns["psnr"], values=values)},
    )
    one = Subject("long", parts={"views": long}, measurements=record.candidates[0].measurements)
    (table,) = part_tables(one, record.reference)
    assert table.note is not None and "of 5,000" in table.note
    shown = [row[1].value for row in table.rows if isinstance(row[1], Number) and row[1].value is not None]
    assert shown == sorted(values)[: len(shown)] and len(shown) == len(table.rows) == 200


def test_key_figures_say_whether_they_are_better_or_worse() -> None:
    record = example.record()
    page = whole_page(record)
    for one, result in zip(record.candidates, page.results, strict=True):
        tones = {figure.label: figure.tone for figure in result.figures}
        assert tones["File size"] == difference(one.measurements["size"], record.reference.measurements["size"]).tone
    assert "better" in {figure.tone for result in page.results for figure in result.figures}
    assert 'class="note better"' in render_page(page)


def test_the_page_keeps_what_is_the_domains_own() -> None:
    record, own = example.record(), example.page()
    figures = (Figure("Mine", "1"),)
    results = (replace(own.results[0], figures=figures), *own.results[1:])
    page = whole_page(record, replace(own, results=results, chosen=2))
    assert page.results[0].figures == figures and page.results[1].figures[0].label == "PSNR"
    assert page.results[0].images == own.results[0].images and page.results[0].drawings
    assert page.chosen == 2 and page.title == own.title
    assert page.command == record.runs[0].command
    assert page.details["Threads"] == "1" and page.details["Compared with"] == "the original's own renders"
    assert [table.title for table in page.tables] == ["Candidates against one another", "Time"]


def test_a_page_needs_no_pictures_and_no_domain() -> None:
    record = example.record()
    page = whole_page(replace(record, runs=(record.runs[0], record.runs[0])))
    assert [result.name for result in page.results] == list(example.NAMES)
    assert [table.title for table in page.tables] == ["Candidates against one another", "Runs"]
    assert "of 2 runs" in page.subtitle and "<img" in render_page(page)


def test_results_that_were_not_measured_are_refused() -> None:
    with pytest.raises(ValueError, match="stranger"):
        whole_page(example.record(), Page("t", "s", "o", (), (Result("stranger"),)))
    with pytest.raises(ValueError, match="none"):
        whole_page(replace(example.record(), candidates=()))
