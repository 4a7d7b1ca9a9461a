"""How records and scenes show themselves in a notebook: tables and pictures as HTML that stands alone.

Jupyter asks an object for `_repr_html_` and `_repr_png_`; nothing here needs it to be installed.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape

from rich.table import Table
from rich.text import Text

from secateur.report.page import Image
from secateur.report.pictures import data_uri

_RIGHT = ' style="text-align: right"'


def table_html(*tables: Table) -> str:
    """Tables of the terminal as tables of a page, one below the other; cells keep their text and their side."""
    return "\n".join(_table(table) for table in tables)


def picture_html(image: Image, caption: str) -> str:
    """An (H, W, 3) picture with a line below it."""
    height, width = image.shape[:2]
    text = escape(caption)
    picture = f'<img src="{data_uri(image)}" width="{width}" height="{height}" alt="{text}">'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def png(image: Image) -> bytes:
    """An (H, W, 3) picture as a PNG file's bytes."""
    from PIL import Image as Pictures

    file = io.BytesIO()
    Pictures.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _table(table: Table) -> str:
    sides = [_RIGHT if column.justify == "right" else "" for column in table.columns]
    rows = zip(*(column.cells for column in table.columns), strict=True)
    lines = ["<table>"]
    if table.title:
        lines.append(f"<caption>{_text(table.title)}</caption>")
    if table.show_header:
        lines.append(f"<thead>{_row('th', [column.header for column in table.columns], sides)}</thead>")
    lines += ["<tbody>", *(_row("td", cells, sides) for cells in rows), "</tbody>", "</table>"]
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[object], sides: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}{side}>{_text(cell)}</{tag}>' for cell, side in zip(cells, sides, strict=True))}</tr>"


def _text(cell: object) -> str:
    """What the terminal shows, without its markup."""
    plain = Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)
    return escape(plain)
