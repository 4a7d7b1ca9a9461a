import math
import re

from secateur.report.page import Meter, Number, Table
from secateur.report.tables import render_section, render_table


def test_numbers_carry_their_values_for_sorting() -> None:
    rows = (
        ("a", Number("1.31 MB", 1_310_000.0), Meter("half", 0.5)),
        ("b", Number("identical", math.inf), Meter("none", math.nan)),
        ("c", Number("?", math.nan), Meter("more", 7.0)),
        ("d", Number("?"), "plain"),
    )
    made = render_table(Table("t", ("", "size", "share"), rows))
    assert re.findall(r'data-value="([^"]*)"', made) == ["1310000", "0.5", "Infinity", "0", "1"]


def test_only_tables_with_rows_to_sort_offer_it() -> None:
    rows = (("reference", "1"), ("a", "2"), ("b", "3"))
    assert 'class="sort"' in render_table(Table("t", ("", "x"), rows, pinned=1))
    assert 'class="sort"' not in render_table(Table("t", ("", "x"), rows[:2], pinned=1))
    assert 'class="sort"' not in render_table(Table("t", ("", "x"), rows, sortable=False))
    assert render_table(Table("t", ("", "x"), rows, pinned=1)).count("<tbody") == 2


def test_best_cells_and_notes_are_said_in_words_and_escaped() -> None:
    cell = Number("<1>", 1.0, note="<b>", tone="worse", best=True)
    made = render_table(Table("t", ("", "x"), (("a", cell),)))
    assert 'class="unseen">best: ' in made and "&lt;1&gt;" in made
    assert '<span class="note worse">&lt;b&gt;</span>' in made


def test_rows_named_as_results_choose_them() -> None:
    made = render_section(Table("<t>", ("", "x"), (("a", "1"), ("b", "2"))), choices={"b": 4})
    assert made.count('data-result="4"') == 1 and '<tr data-row="4">' in made
    assert "<h2>&lt;t&gt;</h2>" in made


def test_empty_tables_are_tables() -> None:
    assert "<tbody></tbody>" in render_table(Table("t", ("", "x"), ()))
