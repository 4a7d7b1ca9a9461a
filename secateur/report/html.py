"""The page of a report: every text that comes from outside is escaped, every picture is inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import quote

from secateur.report.page import Drawing, Figure, Page, Result
from secateur.report.pictures import ENCODINGS, Encoding, data_uri, error_scale, heat_map, icon, palette_stops
from secateur.report.plot import render_plot
from secateur.report.tables import WIDE, render_section

LARGEST = 10_000_000
"""Bytes that a page may take."""

_NO_ICON = "data:,"
_DESCRIBED = 3
_PLOTS = 3
"""Plots that are seen at once; more wait behind a line."""


def render_page(page: Page, largest: int = LARGEST) -> str:
    """One self-contained HTML document: no request leaves it, whoever opens it.

    Pictures are stored worse, then smaller, where the page would take more than `largest` bytes otherwise; its small
    print says so.

    Raises:
        ValueError: it would take more even so.
    """
    size = 0
    for encoding in ENCODINGS:
        document = _document(page, encoding)
        size = len(document.encode())
        if size <= largest:
            return document
    pictures = f"{len(page.views)} views of {len(page.results)} results"
    raise ValueError(
        f"the page would take {size / 1e6:.1f} MB with small pictures, and the limit is {largest / 1e6:g} MB: "
        f"show less than {pictures}, or shorter tables"
    )


def asset(name: str) -> str:
    """A template, style sheet or script of the page."""
    return files("secateur.report").joinpath(name).read_text(encoding="utf-8")


def description(page: Page) -> str:
    """The page in a line: what was done, and the key figures of the first few results."""
    shown = [result for result in page.results if result.figures][:_DESCRIBED]
    figures = [
        f"{result.name}: {', '.join(f'{figure.label} {figure.value}' for figure in result.figures)}" for result in shown
    ]
    return " ".join((page.subtitle, "; ".join(figures))).strip()


def _document(page: Page, encoding: Encoding) -> str:
    scale = error_scale([errors for result in page.results for errors in result.errors])
    choices = {result.name: index for index, result in enumerate(page.results)} if len(page.results) > 1 else {}
    summary = render_section(page.summary, ' class="summary"', choices) if page.summary else ""
    return Template(asset("page.html")).substitute(
        title=escape(page.title),
        subtitle=escape(page.subtitle),
        links=_links(page.links),
        description=escape(description(page), quote=True),
        icon=_icon(page),
        style=asset("page.css"),
        script=asset("page.js"),
        first=page.chosen,
        overview=summary if choices else "",
        plots=_plots(page, choices),
        choice=_choice(page.results),
        figures="".join(_figures(result, _only(page, index)) for index, result in enumerate(page.results)),
        stage=_stage(page, scale) if page.views else "",
        beside="" if choices else summary,
        sections=_sections(page, encoding),
        details=_details(page, encoding),
        pictures=_pictures(page, scale, encoding) if page.views else "{}",
    )


def _links(links: Mapping[str, str]) -> str:
    """A line of links to files beside the page; none can be taken for the address of another place."""
    found = (f'<a href="./{quote(address)}">{escape(text)}</a>' for text, address in links.items())
    return f'<p class="links">{" ".join(found)}</p>' if links else ""


def _icon(page: Page) -> str:
    """The first picture, by which tabs and the index of runs know the page."""
    drawings = [drawing.image for result in page.results for drawing in result.drawings]
    pictures = [*(view.image for view in page.views), *drawings]
    return icon(pictures[0]) if pictures else _NO_ICON


def _plots(page: Page, choices: Mapping[str, int]) -> str:
    """The first few, and the others where readers ask for them."""
    drawn = [
        f"<section><h2>{escape(plot.title)}</h2>{render_plot(plot, choices)}</section>"
        for plot in page.plots
        if len(plot.points) > 1
    ]
    if not drawn:
        return ""
    first, others = "".join(drawn[:_PLOTS]), "".join(drawn[_PLOTS:])
    more = f'<details><summary>More plots</summary><div class="plots">{others}</div></details>' if others else ""
    return f'<div class="plots">{first}</div>{more}'


def _choice(results: tuple[Result, ...]) -> str:
    """Buttons that choose the result to look at, where there are several."""
    if len(results) == 1:
        return ""
    buttons = "".join(
        f'<button type="button" data-result="{index}" aria-pressed="false">{escape(result.name)}</button>'
        for index, result in enumerate(results)
    )
    return f'<div class="choice"><div class="choices" role="group" aria-label="Result">{buttons}</div></div>'


def _only(page: Page, index: int) -> str:
    """Attributes of what is seen only while the result `index` is chosen."""
    return f' data-for="{index}"{"" if index == page.chosen else " hidden"}'


def _figures(result: Result, attributes: str) -> str:
    cards = "".join(_figure(figure) for figure in result.figures)
    return f'<dl class="figures"{attributes}>{cards}</dl>' if cards else ""


def _figure(figure: Figure) -> str:
    arrow = '<span class="arrow" role="img" aria-label="to">→</span>'
    before = f'<span class="before">{"" if figure.before is None else escape(figure.before) + arrow}</span>'
    note = f'<span class="note {figure.tone}">{escape(figure.note)}</span>' if figure.note else ""
    value = f'<span class="value">{escape(figure.value)}</span>'
    return f"<div><dt>{escape(figure.label)}</dt><dd>{before}{value}{note}</dd></div>"


def _stage(page: Page, scale: int) -> str:
    """The comparison: the original under the result, cut by a handle that can be dragged, and the error map."""
    height, width = page.views[0].image.shape[:2]
    thumbnails = "".join(
        f'<button type="button" data-view="{index}" aria-pressed="{"false" if index else "true"}">'
        f'<img alt="" width="72" height="72" data-thumbnail="{index}"><span>{escape(view.name)}</span></button>'
        for index, view in enumerate(page.views)
    )
    stops = ", ".join(palette_stops())
    return Template(asset("stage.html")).substitute(
        width=width,
        height=height,
        original=escape(page.original, quote=True),
        result=escape(page.results[page.chosen].name, quote=True),
        thumbnails=thumbnails,
        stops=stops,
        scale="255" if scale == 255 else f"{scale} or more",
    )


def _pictures(page: Page, scale: int, encoding: Encoding) -> str:
    """The pictures as JSON for the script. "<" is spelled so that no name can close the script element."""
    record = {
        "original": page.original,
        "views": [{"name": view.name, "image": data_uri(view.image, encoding)} for view in page.views],
        "results": [
            {
                "name": result.name,
                "images": [data_uri(image, encoding) for image in result.images],
                "captions": result.captions,
                "errors": [data_uri(heat_map(errors, scale), encoding) for errors in result.errors],
            }
            for result in page.results
        ],
    }
    return json.dumps(record).replace("<", "\\u003c")


def _sections(page: Page, encoding: Encoding) -> str:
    own = "".join(
        render_section(table, _only(page, index))
        for index, result in enumerate(page.results)
        for table in result.tables
    )
    drawn = "".join(
        _drawing(drawing, _only(page, index), encoding)
        for index, result in enumerate(page.results)
        for drawing in result.drawings
    )
    wide = "".join(render_section(table) for table in page.tables if len(table.columns) >= WIDE)
    narrow = "".join(render_section(table) for table in page.tables if len(table.columns) < WIDE)
    return wide + own + drawn + narrow


def _drawing(drawing: Drawing, attributes: str, encoding: Encoding) -> str:
    """A picture on a button that shows it larger."""
    height, width = drawing.image.shape[:2]
    note = f'<p class="note">{escape(drawing.note)}</p>' if drawing.note else ""
    title = escape(drawing.title, quote=True)
    picture = f'<img alt="{title}" width="{width}" height="{height}" src="{data_uri(drawing.image, encoding)}">'
    button = f'<button type="button" class="drawing" aria-label="Enlarge: {title}">{picture}</button>'
    return f"<section{attributes}><h2>{escape(drawing.title)}</h2>{button}{note}</section>"


def _details(page: Page, encoding: Encoding) -> str:
    details: Mapping[str, str] = page.details
    if encoding != ENCODINGS[0]:
        lowered = f"WebP of quality {encoding.quality} at {encoding.share:.0%} of their width, to keep the page small"
        details = {**details, "Pictures": lowered}
    command = ""
    if page.command:
        command = f'<div class="command"><dt>Command</dt><dd><code>{escape(page.command)}</code></dd></div>'
    return command + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in details.items()
    )
