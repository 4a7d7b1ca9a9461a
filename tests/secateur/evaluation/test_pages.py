"""Tables of a record."""

from dataclasses import replace

from secateur.evaluation.compare import compare_records
from secateur.evaluation.merge import candidate_pairs
from secateur.evaluation.pages import comparison_table, pairs_table
from secateur.evaluation.record import EvaluationRecord
from secateur.report.page import Cell
from tests.secateur.evaluation.records import record, subject

VIEWS = (30.0, 33.0, 36.0, 31.0)


def compared(new: EvaluationRecord, old: EvaluationRecord) -> EvaluationRecord:
    return replace(new, comparison=compare_records(new, old, "old.json"))


def texts(row: tuple[Cell, ...]) -> list[str]:
    return [cell if isinstance(cell, str) else cell.text for cell in row]


def test_the_worse_comes_first_and_what_is_within_the_noise_is_counted() -> None:
    old = record(subject("a", psnr=VIEWS, size=1000), subject("b"))
    new = record(subject("a", psnr=[value - 1 for value in VIEWS], size=900), subject("c"))
    table = comparison_table(compared(new, old))
    assert table is not None and table.note is not None
    rows = [texts(row) for row in table.rows]
    assert [row[:3] for row in rows] == [
        ["a", "PSNR", "worse"],
        ["a", "file size", "better"],
        ["b", "the whole", "gone"],
        ["c", "the whole", "new"],
    ]
    assert rows[0][3:5] == ["32.50 dB", "31.50 dB"] and rows[1][3:5] == ["1 kB", "900 B"]
    assert "old.json" in table.note and "3 of 7 measurements within the noise" in table.note


def test_nothing_is_said_where_nothing_has_changed() -> None:
    one = record()
    table = comparison_table(compared(one, one))
    assert table is not None and [row[0] for row in table.rows] == ["Nothing"]
    assert comparison_table(one) is None


def test_pairs_say_whether_candidates_are_apart() -> None:
    a, b, c = (
        subject(name, psnr=[value + add for value, add in zip(VIEWS, adds, strict=True)])
        for name, adds in (("a", (0, 0, 0, 0)), ("b", (1, 2, 1, 2)), ("c", (0.5, -0.5, 0.5, -0.5)))
    )
    table = pairs_table(record(a, b, c, pairs=candidate_pairs([a, b, c])))
    assert table is not None
    assert {row[0]: row[-1] for row in map(texts, table.rows)} == {"a - b": "yes", "a - c": "no", "b - c": "yes"}
    assert texts(table.rows[0])[2] == "-1.50 dB"
    assert pairs_table(record()) is None
