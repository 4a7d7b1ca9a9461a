"""Where a subject's numbers come from: a table by view, class or attribute, beside the reference's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from secateur.evaluation.record import Column, Part, Subject
from secateur.evaluation.wording import say, say_value
from secateur.report.page import Cell, Meter, Number, Table

_ROWS = 200
"""Rows that a table shows: the worst; results.json has them all."""


def part_tables(one: Subject, reference: Subject) -> tuple[Table, ...]:
    """A table for each part of a subject, beside the reference's part of the same name where that has it."""
    return tuple(_part_table(part, reference.parts.get(name), one, reference.name) for name, part in one.parts.items())


def _part_table(part: Part, former: Part | None, one: Subject, reference: str) -> Table:
    """Rows of the reference first; a column of the reference beside each that it has, too, and the change."""
    names = list(dict.fromkeys((*(former.rows if former else ()), *part.rows)))
    heads, cells, alone = [part.by.capitalize()], [], len(part.columns) == 1
    for name, column in part.columns.items():
        mine = dict(zip(part.rows, column.values, strict=True))
        theirs = former.columns.get(name) if former is not None else None
        if former is not None and theirs is not None:
            before = dict(zip(former.rows, theirs.values, strict=True))
            heads.append(reference if alone else f"{column.label}, {reference}")
            cells.append([_value(before.get(row), column) for row in names])
        mixed = one.name if alone else f"{column.label}, {one.name}"
        heads.append(column.label if theirs is None else mixed)
        cells.append(_column(mine, column, names))
        if former is not None and theirs is not None and column.unit != "bytes":
            heads.append("change")
            cells.append([_change(before.get(row), mine.get(row), column.unit) for row in names])
    rows = tuple((row, *(column[index] for column in cells)) for index, row in enumerate(names))
    labels = " and ".join(column.label for column in part.columns.values())
    title = f"{labels[:1].upper()}{labels[1:]} by {part.by}"
    total = _total(part, one, former is not None)
    if len(rows) <= _ROWS:
        return Table(title, tuple(heads), rows, total=total)
    note = f"The {_ROWS:,} worst of {len(rows):,}; results.json has all."
    return Table(title, tuple(heads), tuple(rows[index] for index in _worst(part, names)), note, total)


def _worst(part: Part, names: Sequence[str]) -> list[int]:
    """Places of the rows that are worst in the first column, where that says which way is better; else the first."""
    column = next(iter(part.columns.values()))
    values = dict(zip(part.rows, column.values, strict=True))
    sign = {"higher": 1.0, "lower": -1.0, "neither": 0.0}[column.better]

    def badness(index: int) -> float:
        value = values.get(names[index])
        return math.inf if value is None else sign * value

    return sorted(range(len(names)), key=badness)[:_ROWS]


def _column(values: Mapping[str, float | None], column: Column, names: Sequence[str]) -> list[Cell]:
    """Cells of a column: bytes and shares have bars behind them."""
    if column.unit not in ("bytes", "share"):
        return [_value(values.get(row), column) for row in names]
    largest = 1.0 if column.unit == "share" else max((value or 0.0 for value in values.values()), default=0.0)
    return [
        "" if value is None else Meter(say_value(value, column.unit), value / largest if largest else 0.0)
        for value in (values.get(row) for row in names)
    ]


def _value(value: float | None, column: Column) -> Cell:
    return "" if value is None else Number(say_value(value, column.unit), value)


def _change(before: float | None, after: float | None, unit: str) -> Cell:
    if before is None or after is None:
        return ""
    text = f"{100 * (after - before):+.2f}" if unit == "share" else f"{after - before:+.4g}"
    return Number(text.replace("-", "\N{MINUS SIGN}"), after - before)


def _total(part: Part, one: Subject, beside: bool) -> tuple[Cell, ...] | None:
    """The means that the subject measured, where its table has no columns of the reference's."""
    if beside or not any(name in one.measurements for name in part.columns):
        return None
    found = [one.measurements.get(name) for name in part.columns]
    return ("Mean", *("" if measurement is None else say(measurement) for measurement in found))
