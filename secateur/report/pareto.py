"""Quality against cost: which measurements of a record are plotted against which."""

from __future__ import annotations

from secateur.evaluation.record import EvaluationRecord, Measurement, Subject
from secateur.report.difference import is_cost
from secateur.report.page import Plot, Point

_POWERS = {1e12: "trillions", 1e9: "billions", 1e6: "millions", 1e3: "thousands"}
_BYTES = {1e9: "GB", 1e6: "MB", 1e3: "kB"}


def pareto_plots(record: EvaluationRecord) -> tuple[Plot, ...]:
    """A plot for each quality and each cost that at least two subjects have; none where one candidate is all there is.

    The qualities are the first of which more is better and the first of which less is better; the costs are bytes (or
    else what is counted first), multiply-adds and time.
    """
    if len(record.candidates) < 2:
        return ()
    plots = (_plot(record, cost, quality) for quality in _qualities(record) for cost in _costs(record))
    return tuple(plot for plot in plots if len(plot.points) > 1)


def _measured(record: EvaluationRecord) -> dict[str, Measurement]:
    """One measurement of each name, by which its kind is told."""
    return {name: one for subject in reversed(record.subjects) for name, one in subject.measurements.items()}


def _qualities(record: EvaluationRecord) -> list[str]:
    first: dict[str, str] = {}
    for subject in record.candidates:
        for name, one in subject.measurements.items():
            if one.better != "neither" and not is_cost(one):
                first.setdefault(one.better, name)
    return list(first.values())


def _costs(record: EvaluationRecord) -> list[str]:
    measured = {name: one for name, one in _measured(record).items() if is_cost(one) and one.better != "neither"}
    counted = [name for name, one in measured.items() if one.noise is not None and one.noise.kind == "counted"]
    found = [
        next((name for name in counted if measured[name].unit == "bytes"), next(iter(counted), None)),
        next((name for name in counted if name == "macs"), None),
        next((name for name, one in measured.items() if one.unit == "ms"), None)
        or next((name for name, one in measured.items() if one.unit == "1/s"), None),
    ]
    return list(dict.fromkeys(name for name in found if name is not None))


def _plot(record: EvaluationRecord, cost: str, quality: str) -> Plot:
    measured = _measured(record)
    x, y = measured[cost], measured[quality]
    shown = [
        subject
        for subject in record.subjects
        if all(
            name in subject.measurements and subject.measurements[name].value is not None for name in (cost, quality)
        )
    ]
    (x_factor, x_label), (y_factor, y_label) = (
        _scaled(one, [subject.measurements[name].value or 0.0 for subject in shown])
        for one, name in ((x, cost), (y, quality))
    )
    points = tuple(_point(subject, cost, quality, x_factor, y_factor) for subject in shown)
    return Plot(f"{_capital(y.label)} over {x.label}", x_label, y_label, points, x.better, y.better)


def _point(subject: Subject, cost: str, quality: str, x_factor: float, y_factor: float) -> Point:
    x, y = subject.measurements[cost], subject.measurements[quality]
    interval = None if y.interval is None else (y_factor * y.interval.low, y_factor * y.interval.high)
    return Point(x_factor * (x.value or 0.0), y_factor * (y.value or 0.0), subject.name, interval)


def _scaled(one: Measurement, values: list[float]) -> tuple[float, str]:
    """What to multiply values by so that ticks are short, and the axis' title with the unit that they then have."""
    largest = max(values, default=0.0)
    if one.unit == "share":
        return 100.0, _in(one.label, "%")
    names = _BYTES if one.unit == "bytes" else _POWERS if not one.unit else {}
    for power, name in names.items():
        if largest >= power and (one.unit or largest >= 10_000):
            return 1.0 / power, _in(one.label, name)
    return 1.0, one.label if one.unit in ("", "1/s") else _in(one.label, one.unit)


def _in(label: str, unit: str) -> str:
    return f"{label}, in {unit}" if "," in label else f"{label} in {unit}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
