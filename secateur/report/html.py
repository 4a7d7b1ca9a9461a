"""The page of a report: every text that comes from outside is escaped, every picture is inside."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from string import Template

from secateur.report.page import Cell, Drawing, Figure, Meter, Page, Result, Table
from secateur.report.pictures import data_uri, error_scale, heat_map, palette_stops
from secateur.report.plot import render_plot


def render_page(page: Page) -> str:
    """One self-contained HTML document: no request leaves it, whoever opens it."""
    scale = error_scale([errors for result in page.results for errors in result.errors])
    return Template(_asset("page.html")).substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        style=_asset("page.css"),
        script=_asset("page.js"),
        choice=_choice(page.results),
        figures="".join(_figures(result, index) for index, result in enumerate(page.results)),
        stage=_stage(page, scale) if page.views else "",
        sections=_sections(page),
        details=_details(page),
        pictures=_pictures(page, scale) if page.views else "{}",
    )


def _asset(name: str) -> str:
    return files("secateur.report").joinpath(name).read_text(encoding="utf-8")


def _choice(results: tuple[Result, ...]) -> str:
    """Buttons that choose the result to look at, where there are several."""
    if len(results) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" data-result="{index}" aria-pressed="{_bool(index == 0)}">{escape(result.name)}</button>'
        for index, result in enumerate(results)
    )
    return f'<div class="choice" role="group" aria-label="Result">{buttons}</div>'


def _figures(result: Result, index: int) -> str:
    cards = "".join(_figure(figure) for figure in result.figures)
    return f'<dl class="figures" data-for="{index}"{_hidden(index)}>{cards}</dl>'


def _figure(figure: Figure) -> str:
    arrow = '<span class="arrow" role="img" aria-label="to">→</span>'
    before = f'<span class="before">{"" if figure.before is None else escape(figure.before) + arrow}</span>'
    note = f'<span class="note">{escape(figure.note)}</span>' if figure.note else ""
    value = f'<span class="value">{escape(figure.value)}</span>'
    return f"<div><dt>{escape(figure.label)}</dt><dd>{before}{value}{note}</dd></div>"


def _stage(page: Page, scale: int) -> str:
    """The comparison: the original under the result, cut by a handle that can be dragged, and the error map."""
    height, width = page.views[0].image.shape[:2]
    thumbnails = "".join(
        f'<button type="button" data-view="{index}" aria-pressed="{_bool(index == 0)}">'
        f'<img alt="" width="72" height="72" data-thumbnail="{index}"><span>{escape(view.name)}</span></button>'
        for index, view in enumerate(page.views)
    )
    stops = ", ".join(palette_stops())
    return Template(_asset("stage.html")).substitute(
        width=width,
        height=height,
        original=escape(page.original, quote=True),
        result=escape(page.results[0].name, quote=True),
        thumbnails=thumbnails,
        stops=stops,
        scale="255" if scale == 255 else f"{scale} or more",
    )


def _pictures(page: Page, scale: int) -> str:
    """The pictures as JSON for the script. "<" is spelled so that no name can close the script element."""
    record = {
        "original": page.original,
        "views": [{"name": view.name, "image": data_uri(view.image)} for view in page.views],
        "results": [
            {
                "name": result.name,
                "images": [data_uri(image) for image in result.images],
                "captions": result.captions,
                "errors": [data_uri(heat_map(errors, scale)) for errors in result.errors],
            }
            for result in page.results
        ],
    }
    return json.dumps(record).replace("<", "\\u003c")


def _sections(page: Page) -> str:
    plot = ""
    if page.plot is not None and len(page.plot.points) > 1:
        plot = f"<section><h2>{escape(page.plot.title)}</h2>{render_plot(page.plot)}</section>"
    own = "".join(
        _table(table, f' data-for="{index}"{_hidden(index)}')
        for index, result in enumerate(page.results)
        for table in result.tables
    )
    drawn = "".join(
        _drawing(drawing, f' data-for="{index}"{_hidden(index)}')
        for index, result in enumerate(page.results)
        for drawing in result.drawings
    )
    return plot + own + drawn


def _drawing(drawing: Drawing, attributes: str) -> str:
    height, width = drawing.image.shape[:2]
    note = f'<p class="note">{escape(drawing.note)}</p>' if drawing.note else ""
    picture = (
        f'<img class="drawing" alt="{escape(drawing.title, quote=True)}" width="{width}" height="{height}" '
        f'src="{data_uri(drawing.image)}">'
    )
    return f"<section{attributes}><h2>{escape(drawing.title)}</h2>{picture}{note}</section>"


def _table(table: Table, attributes: str) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in table.rows)
    foot = f"<tfoot><tr>{_cells(table.total)}</tr></tfoot>" if table.total else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"
    return f'<section{attributes}><h2>{escape(table.title)}</h2><div class="scroll">{inner}</div>{note}</section>'


def _cells(row: Iterable[Cell]) -> str:
    name, *numbers = row
    cells = [f'<th scope="row">{escape(name.text if isinstance(name, Meter) else name)}</th>']
    for cell in numbers:
        if isinstance(cell, Meter):
            share = min(max(cell.share, 0.0), 1.0)
            cells.append(f'<td class="meter" style="--share:{share:.4f}">{escape(cell.text)}</td>')
        else:
            cells.append(f"<td>{escape(cell)}</td>")
    return "".join(cells)


def _details(page: Page) -> str:
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.details.items()
    )


def _hidden(index: int) -> str:
    return " hidden" if index else ""


def _bool(value: bool) -> str:
    return "true" if value else "false"
