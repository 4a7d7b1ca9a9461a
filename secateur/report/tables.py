"""Tables as HTML: every text that comes from outside is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape

from secateur.report.page import Cell, Meter, Table

WIDE = 5
"""Columns from which on a table has the whole width of the page."""


def render_table(table: Table, choices: Mapping[str, int] | None = None) -> str:
    """A `<table>` on its own, as a page or a notebook can hold it.

    Args:
        table: what it shows; title and note are left to whoever puts it somewhere.
        choices: name -> index of the result that a row of this name chooses.
    """
    sortable = table.sortable and len(table.rows) - table.pinned > 1
    head = "".join(_heading(column, sortable) for column in table.columns)
    rows = [_row(row, choices or {}) for row in table.rows]
    pinned = f"<tbody>{''.join(rows[: table.pinned])}</tbody>" if table.pinned else ""
    moving = f"<tbody{' data-sorted' if sortable else ''}>{''.join(rows[table.pinned :])}</tbody>"
    foot = f"<tfoot><tr>{_cells(table.total, {})}</tr></tfoot>" if table.total else ""
    caption = f'<caption class="unseen">{escape(table.title)}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead>{pinned}{moving}{foot}</table>"


def render_section(table: Table, attributes: str = "", choices: Mapping[str, int] | None = None) -> str:
    """A section of the page: heading, the table in a box that scrolls by itself, and the note.

    Args:
        table: what it shows.
        attributes: of the section, beginning with a space.
        choices: as in `render_table`.
    """
    if not attributes and len(table.columns) >= WIDE:
        attributes = ' class="wide"'
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    box = f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(table.title, quote=True)}">'
    return (
        f"<section{attributes}><h2>{escape(table.title)}</h2>{box}{render_table(table, choices)}</div>{note}</section>"
    )


def _heading(column: str, sortable: bool) -> str:
    text = escape(column)
    if not sortable:
        return f'<th scope="col">{text}</th>'
    return f'<th scope="col"><button type="button" class="sort">{text or "Name"}</button></th>'


def _row(row: tuple[Cell, ...], choices: Mapping[str, int]) -> str:
    chosen = choices.get(_text(row[0]))
    attribute = "" if chosen is None else f' data-row="{chosen}"'
    return f"<tr{attribute}>{_cells(row, choices)}</tr>"


def _cells(row: Iterable[Cell], choices: Mapping[str, int]) -> str:
    name, *numbers = row
    text = _text(name)
    shown = escape(text)
    if text in choices:
        chooses = f'class="chooser" data-result="{choices[text]}" aria-pressed="false"'
        shown = f'<button type="button" {chooses}>{shown}</button>'
    return f'<th scope="row">{shown}</th>' + "".join(_cell(cell) for cell in numbers)


def _cell(cell: Cell) -> str:
    if isinstance(cell, Meter):
        share = min(max(cell.share, 0.0), 1.0) if math.isfinite(cell.share) else 0.0
        return f'<td class="meter" data-value="{share:.6g}" style="--share:{share:.4f}">{escape(cell.text)}</td>'
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    value = "" if cell.value is None or math.isnan(cell.value) else f' data-value="{_for_script(cell.value)}"'
    best = '<span class="mark" title="best"><span class="unseen">best: </span></span>' if cell.best else ""
    note = f'<span class="note {cell.tone}">{escape(cell.note)}</span>' if cell.note else ""
    kind = ' class="best"' if cell.best else ""
    return f"<td{kind}{value}>{best}{escape(cell.text)}{note}</td>"


def _for_script(value: float) -> str:
    """A number as JavaScript reads it."""
    return f"{value:.17g}" if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell.text
