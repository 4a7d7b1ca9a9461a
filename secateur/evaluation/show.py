"""Records on the terminal."""

from __future__ import annotations

from rich.table import Table

from secateur.console import console
from secateur.evaluation.pages import measurement_of
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.wording import say_difference, say_value, say_with_noise

_STYLES = {"worse": "red", "better": "green"}


def show_record(record: EvaluationRecord) -> None:
    """Print a column for each subject, and what has changed since an older record."""
    console.print(record_table(record))
    show_comparison(record)


def record_table(record: EvaluationRecord) -> Table:
    """A column for each subject, a row for each measurement."""
    table = _table(record.reference.name, "", "reference", *(one.name for one in record.candidates))
    for name in dict.fromkeys(name for one in (*record.candidates, record.reference) for name in one.measurements):
        found = [one.measurements.get(name) for one in record.subjects]
        label = next(one.label for one in found if one is not None)
        table.add_row(label, *("" if one is None else say_with_noise(one) for one in found))
    return table


def show_comparison(record: EvaluationRecord) -> None:
    """Print what has changed since an older record: a line for all that is within the noise."""
    comparison = record.comparison
    if comparison is None:
        return
    table = _table(f"Since {comparison.against}", "", "measurement", "verdict", "before", "now", "noise", "by")
    for change in comparison.changes:
        if change.verdict == "within noise":
            continue
        one = measurement_of(change, record)
        unit, label = ("", change.measurement or "the whole") if one is None else (one.unit, one.label)
        numbers = [say_value(value, unit) for value in (change.old, change.new)]
        noise = "" if change.noise is None else say_difference(change.noise, unit)
        style = _STYLES.get(change.verdict)
        table.add_row(change.subject, label, change.verdict, *numbers, noise, change.reason, style=style)
    if table.row_count:
        console.print(table)
    quiet = sum(change.verdict == "within noise" for change in comparison.changes)
    console.print(f"{quiet} of {len(comparison.changes)} within noise", highlight=False)
    for note in comparison.notes:
        console.print(note, highlight=False, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table
