"""The page of an evaluation, from the record that all evaluations share: only pictures and what is a domain's own come
from the domain."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from secateur.evaluation.pages import comparison_table, pairs_table
from secateur.evaluation.record import EvaluationRecord, Run, Subject
from secateur.report.difference import difference, say_shortly
from secateur.report.page import Cell, Figure, Meter, Number, Page, Result, Table
from secateur.report.pareto import pareto_plots
from secateur.report.parts import part_tables
from secateur.report.summary import summary_table


def whole_page(record: EvaluationRecord, page: Page | None = None) -> Page:
    """The page with all that the record knows: summary, plots, key figures, tables of parts, what was run and on what.

    Args:
        record: the measurements.
        page: title, pictures and tables of the domain's own. Its results are called as candidates of the record; those
            that have no key figures get them from the record. None: a page without pictures.

    Raises:
        ValueError: the record has no candidates, or the page shows a result that is none of them.
    """
    if not record.candidates:
        raise ValueError("a page of an evaluation needs candidates, and the record has none")
    page = page or _without_pictures(record)
    own = {result.name: result for result in page.results}
    strangers = own.keys() - {one.name for one in record.candidates}
    if strangers:
        raise ValueError(f"the page shows {', '.join(sorted(strangers))}, which the record does not have")
    shown = [one for one in record.candidates if one.name in own or not page.views]
    chosen = page.results[page.chosen].name
    return replace(
        page,
        results=tuple(_result(own.get(one.name) or Result(one.name), one, record) for one in shown),
        chosen=[one.name for one in shown].index(chosen),
        plots=(*pareto_plots(record), *page.plots),
        summary=summary_table(record),
        tables=(*_tables(record, [table.title for table in page.tables]), *page.tables),
        details={**_details(record), **page.details},
        command=record.runs[0].command if len(record.runs) == 1 else None,
    )


def option_details(options: Mapping[str, object]) -> dict[str, str]:
    """Options for the small print of a page, but for those that were left open."""
    return {name.replace("_", " ").capitalize(): _said(value) for name, value in options.items() if value is not None}


def _said(value: object) -> str:
    """An option in a line; those of options in parentheses."""
    if not isinstance(value, dict):
        return str(value)
    parts = (f"{name} ({_said(one)})" if isinstance(one, dict) else f"{name} {one}" for name, one in value.items())
    return ", ".join(parts)


def _without_pictures(record: EvaluationRecord) -> Page:
    runs = f", of {len(record.runs)} runs" if len(record.runs) > 1 else ""
    subtitle = f"{', '.join(one.name for one in record.candidates)} against {record.reference.name}{runs}."
    results = tuple(Result(one.name) for one in record.candidates)
    return Page(record.reference.name, subtitle, record.reference.name, (), results)


def _result(result: Result, one: Subject, record: EvaluationRecord) -> Result:
    figures = result.figures or _figures(one, record)
    return replace(result, figures=figures, tables=(*part_tables(one, record.reference), *result.tables))


def _figures(one: Subject, record: EvaluationRecord) -> tuple[Figure, ...]:
    before = record.reference_measurements(one)
    figures = []
    for name, measurement in one.measurements.items():
        former = before.get(name)
        if measurement.better == "neither" and former is not None and former.value == measurement.value:
            continue
        beside, shown = difference(measurement, former), None if former is None else say_shortly(former)
        label = measurement.label[:1].upper() + measurement.label[1:]
        figures.append(Figure(label, say_shortly(measurement), shown, beside.words or None, beside.tone))
    return tuple(figures)


def _tables(record: EvaluationRecord, own: Collection[str]) -> list[Table]:
    """Tables of the whole run, but for those whose titles the domain's own have."""
    tables = [comparison_table(record), pairs_table(record)]
    if len(record.runs) > 1:
        tables.append(_runs(record.runs))
    elif record.runs[0].seconds:
        tables.append(_times(record.runs[0].seconds))
    return [table for table in tables if table is not None and table.title not in own]


def _times(seconds: Mapping[str, float]) -> Table:
    """Seconds by step."""
    longest = max(seconds.values(), default=0.0)
    rows = tuple((step, Meter(f"{time:.1f} s", time / longest if longest else 0.0)) for step, time in seconds.items())
    return Table("Time", ("Step", "Seconds"), rows, total=("Total", f"{sum(seconds.values()):.1f} s"))


def _runs(runs: Sequence[Run]) -> Table:
    columns = ("Run", "Started", "Machine", "Threads", "Load", "Seconds", "Command")
    rows: list[tuple[Cell, ...]] = [
        (
            str(index + 1),
            run.started_at,
            run.machine.gpu or run.machine.processor,
            Number(str(run.threads), run.threads),
            "" if run.load_average is None else Number(f"{run.load_average:.2f}", run.load_average),
            Number(f"{sum(run.seconds.values()):.1f}", sum(run.seconds.values())),
            run.command,
        )
        for index, run in enumerate(runs)
    ]
    return Table("Runs", columns, tuple(rows))


def _details(record: EvaluationRecord) -> dict[str, str]:
    protocol = {name.replace("_", " ").capitalize(): _plain(value) for name, value in record.protocol.items()}
    return {**(_run_details(record.runs[0]) if len(record.runs) == 1 else {}), **protocol}


def _run_details(run: Run) -> dict[str, str]:
    """What was run and on what, name by name."""
    machine = run.machine
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 1e9:.0f} GB of memory"
    return {
        "Started": run.started_at,
        "Machine": f"{machine.processor}, {machine.cores} cores{memory}",
        "GPU": machine.gpu or "none",
        "System": machine.system,
        "Threads": str(run.threads),
        "Load average before": "unknown" if run.load_average is None else f"{run.load_average:.2f}",
        "Seeds": _listed(run.seeds) or "none",
        "Versions": _listed({"secateur": run.secateur, **run.versions}),
    }


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
