"""All candidates of a record beside the reference, with the best of each column."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.evaluation.record import EvaluationRecord, Measurement, Subject
from secateur.report.difference import TIMES, difference, noise_between, say_shortly
from secateur.report.page import Cell, Number, Table


def summary_table(record: EvaluationRecord) -> Table | None:
    """A row for each subject, the reference first where it was measured, and a column for each measurement.

    None where there is one candidate, and nothing beside it: its key figures say all of it.
    """
    measured = bool(record.reference.measurements) or any(run.reference for run in record.runs)
    if not measured and len(record.candidates) == 1:
        return None
    names = _columns(record)
    labels = {name: one.label for subject in record.subjects for name, one in subject.measurements.items()}
    best = {name: best_of(record, name) for name in names}
    rows: list[tuple[Cell, ...]] = []
    if measured:
        rows.append((record.reference.name, *(_number(record.reference.measurements.get(name)) for name in names)))
    for one in record.candidates:
        before = record.reference_measurements(one)
        cells = (_compared(one, name, before, one.name in best[name]) for name in names)
        rows.append((one.name, *cells))
    columns = ("", *(labels[name] for name in names))
    title = "All candidates" if len(record.candidates) > 1 else "Before and after"
    return Table(title, columns, tuple(rows), _note(record, measured), pinned=int(measured))


def best_of(record: EvaluationRecord, name: str) -> frozenset[str]:
    """The candidates that are best in a measurement: the best one, and those that do not differ from it beyond noise.

    Whether they do is told by paired samples where there are some, else by the noise of both values. Nothing is best
    where there is only one candidate, where no way is better, or where none differs from another.
    """
    found = {one.name: one.measurements[name] for one in record.candidates if name in one.measurements}
    known = {subject: _rank(one) for subject, one in found.items() if one.value is not None or one.infinite}
    directions = {one.better for one in found.values()}
    if len(known) < 2 or directions not in ({"higher"}, {"lower"}):
        return frozenset()
    pick = max if directions == {"higher"} else min
    winner = pick(known, key=lambda subject: known[subject])
    paired = {
        frozenset((pair.candidate, pair.against)): pair.difference for pair in record.pairs if pair.measurement == name
    }

    def equal(subject: str) -> bool:
        pair = paired.get(frozenset((subject, winner)))
        if pair is not None:
            return pair.low <= 0.0 <= pair.high
        noise = noise_between(found[subject], found[winner]) or 0.0
        return known[subject] == known[winner] or abs(known[subject] - known[winner]) <= noise

    best = frozenset(subject for subject in known if equal(subject))
    return best if len(best) < len(known) else frozenset()


def _columns(record: EvaluationRecord) -> list[str]:
    """Names of what any subject measured, but for what is neither good nor bad and the same for all."""
    names = dict.fromkeys(name for one in (*record.candidates, record.reference) for name in one.measurements)
    return [name for name in names if not _idle(record, name)]


def _idle(record: EvaluationRecord, name: str) -> bool:
    found = [one.measurements[name] for one in record.subjects if name in one.measurements]
    return all(one.better == "neither" for one in found) and len({one.value for one in found}) == 1


def _rank(one: Measurement) -> float:
    return float("inf") if one.value is None else one.value


def _number(one: Measurement | None) -> Cell:
    return "" if one is None else Number(say_shortly(one), _sorted_by(one))


def _compared(subject: Subject, name: str, before: Mapping[str, Measurement], best: bool) -> Cell:
    one = subject.measurements.get(name)
    if one is None:
        return ""
    beside = difference(one, before.get(name))
    return Number(say_shortly(one), _sorted_by(one), beside.text or None, beside.tone, best)


def _sorted_by(one: Measurement) -> float | None:
    return float("inf") if one.value is None and one.infinite else one.value


def _note(record: EvaluationRecord, measured: bool) -> str:
    """What the small numbers are; only those of a reference that was measured have a difference."""
    notes = []
    if measured:
        notes.append(f"Below a value: how it differs from {record.reference.name} ({TIMES}: how many times as much).")
    intervals = [
        interval
        for subject in record.candidates
        for one in subject.measurements.values()
        for interval in (one.change, one.interval)
        if interval is not None
    ]
    if intervals:
        counts = {interval.count for interval in intervals}
        over = f", over {counts.pop():,} samples" if len(counts) == 1 else ""
        notes.append(f"In brackets: {intervals[0].confidence:.0%} bootstrap intervals{over}.")
    if len(record.candidates) > 1:
        notes.append("★: the best, and what does not differ from it beyond the noise.")
    machines = {(run.machine.processor, run.machine.gpu, run.threads) for run in record.runs}
    if len(machines) > 1:
        notes.append("Times are of several machines: compare them within a run.")
    return " ".join(notes)
