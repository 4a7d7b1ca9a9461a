"""Records on a page: what has changed since an older one, and several runs beside one another."""

from __future__ import annotations

from dataclasses import replace

from secateur.evaluation.record import Change, EvaluationRecord, Measurement, Run, Subject
from secateur.evaluation.wording import say, say_noise, say_value
from secateur.report.page import Cell, Figure, Number, Page, Plot, Point, Result, Table

_COSTS = ("size", "macs", "latency", "frame")
_QUALITIES = ("psnr", "accuracy", "ssim")


def with_comparison(page: Page, record: EvaluationRecord) -> Page:
    """The page with what has changed since the older record on top of its tables; as it is where there is none."""
    table = comparison_table(record)
    return page if table is None else replace(page, tables=(table, *page.tables))


def comparison_table(record: EvaluationRecord) -> Table | None:
    """What got better or worse since an older record: beyond the noise first; None where there is none."""
    comparison = record.comparison
    if comparison is None:
        return None
    order = ["worse", "better", "different", "gone", "new", "unclear", "within noise"]
    changes = sorted(comparison.changes, key=lambda change: order.index(change.verdict))
    said = f"Compared with {comparison.against} of {comparison.started_at}."
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in comparison.notes)
    columns = ("", "Measurement", "Verdict", "Before", "Now", "Noise", "By")
    rows = tuple(_change_row(change, record) for change in changes)
    return Table("What has changed", columns, rows, f"{said} {notes}".strip())


def _change_row(change: Change, record: EvaluationRecord) -> tuple[Cell, ...]:
    found = measurement_of(change, record)
    unit, label = ("", change.measurement or "the whole") if found is None else (found.unit, found.label)
    numbers = [Number(say_value(value, unit), value) for value in (change.old, change.new)]
    noise = "" if change.noise is None else say_value(change.noise, unit)
    return (change.subject, label, change.verdict, *numbers, noise, change.reason)


def measurement_of(change: Change, record: EvaluationRecord) -> Measurement | None:
    """The measurement that a change speaks of, in the newer record; None where that has none."""
    for subject in record.subjects:
        if subject.name == change.subject:
            return subject.measurements.get(change.measurement or "")
    return None


def merged_page(record: EvaluationRecord) -> Page:
    """A page of tables and plots for a record of several runs; the pictures are in the runs' own pages.

    Raises:
        ValueError: the record has no candidates.
    """
    runs = "a run" if len(record.runs) == 1 else f"{len(record.runs)} runs"
    return Page(
        record.reference.name,
        f"{len(record.candidates)} candidates of {runs}, against {record.reference.name}.",
        record.reference.name,
        (),
        tuple(Result(one.name, _figures(one, record), tables=(*_parts(one),)) for one in record.candidates),
        _plots(record),
        {f"Run {index + 1}": _run(run) for index, run in enumerate(record.runs)},
        overview_table(record),
        tuple(table for table in (pairs_table(record),) if table is not None),
        record.runs[0].command,
    )


def overview_table(record: EvaluationRecord) -> Table:
    """A row for each subject, a column for each measurement."""
    names = list(dict.fromkeys(name for one in record.subjects for name in one.measurements))
    labels = {name: one.measurements[name].label for one in record.subjects for name in one.measurements}
    rows = tuple((one.name, *(_number(one, name) for name in names)) for one in record.subjects)
    columns = ("", *(labels[name] for name in names))
    return Table("All candidates", columns, rows, _times_note(record), pinned=1)


def pairs_table(record: EvaluationRecord) -> Table | None:
    """Candidates compared with one another, sample by sample; None where there are none."""
    if not record.pairs:
        return None
    rows: list[tuple[Cell, ...]] = []
    for pair in record.pairs:
        one = next(one for one in record.candidates if one.name == pair.candidate).measurements[pair.measurement]
        low, high = (say_value(end, one.unit) for end in (pair.difference.low, pair.difference.high))
        apart = "yes" if pair.difference.low > 0 or pair.difference.high < 0 else "no"
        mean = Number(say_value(pair.difference.mean, one.unit), pair.difference.mean)
        rows.append((f"{pair.candidate} - {pair.against}", one.label, mean, f"{low} to {high}", apart))
    confidence = record.pairs[0].difference.confidence
    note = f"Mean of the paired differences, with their bootstrap interval of {confidence:.0%}."
    columns = ("Pair", "Measurement", "Difference", "Interval", "Apart")
    return Table("Candidates against one another", columns, tuple(rows), note)


def _number(subject: Subject, name: str) -> Cell:
    one = subject.measurements.get(name)
    return "" if one is None else Number(say(one), one.value, say_noise(one) or None)


def _figures(one: Subject, record: EvaluationRecord) -> tuple[Figure, ...]:
    before = record.reference_measurements(one)
    return tuple(
        Figure(
            measurement.label,
            say(measurement),
            say(before[name]) if name in before else None,
            say_noise(measurement) or None,
        )
        for name, measurement in one.measurements.items()
    )


def _parts(one: Subject) -> list[Table]:
    tables = []
    for title, part in one.parts.items():
        columns = list(part.columns.values())
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (row, *(Number(say_value(column.values[index], column.unit), column.values[index]) for column in columns))
            for index, row in enumerate(part.rows)
        )
        heads = (part.by.capitalize(), *(column.label for column in columns))
        tables.append(Table(title.capitalize(), heads, rows))
    return tables


def _plots(record: EvaluationRecord) -> tuple[Plot, ...]:
    """Quality over each cost that all candidates have."""
    shared = [name for name in _QUALITIES if all(name in one.measurements for one in record.candidates)]
    if not shared:
        return ()
    plots = []
    for cost in _COSTS:
        if not all(cost in one.measurements for one in record.candidates):
            continue
        points = [_point(one, cost, shared[0]) for one in record.candidates]
        x, y = (record.candidates[0].measurements[name] for name in (cost, shared[0]))
        x_label, y_label = (f"{one.label} in {one.unit}" if one.unit else one.label for one in (x, y))
        finite = tuple(point for point in points if point is not None)
        plots.append(Plot(f"{y.label} over {x.label}", x_label, y_label, finite, x.better, y.better))
    return tuple(plots)


def _point(one: Subject, cost: str, quality: str) -> Point | None:
    x, y = one.measurements[cost], one.measurements[quality]
    if x.value is None or y.value is None:
        return None
    return Point(x.value, y.value, one.name, None if y.interval is None else (y.interval.low, y.interval.high))


def _times_note(record: EvaluationRecord) -> str | None:
    machines = {(run.machine.processor, run.machine.gpu, run.threads) for run in record.runs}
    return "Times of several machines: compare them within a run only." if len(machines) > 1 else None


def _run(run: Run) -> str:
    load = "" if run.load_average is None else f", load {run.load_average:.1f}"
    return f"{run.command} ({run.started_at}; {run.machine.processor}, {run.threads} threads{load})"
