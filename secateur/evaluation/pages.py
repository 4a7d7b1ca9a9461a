"""Tables of a record: what has changed since an older one, and candidates against one another."""

from __future__ import annotations

from secateur.evaluation.record import Change, EvaluationRecord, Measurement
from secateur.evaluation.wording import say_difference, say_value
from secateur.report.page import Cell, Number, Table


def comparison_table(record: EvaluationRecord) -> Table | None:
    """What changed beyond the noise since an older record, the worse first; None where there is no such record."""
    comparison = record.comparison
    if comparison is None:
        return None
    order = ["worse", "better", "different", "gone", "new", "unclear"]
    changes = sorted(
        (change for change in comparison.changes if change.verdict in order),
        key=lambda change: order.index(change.verdict),
    )
    quiet = len(comparison.changes) - len(changes)
    said = [
        f"Compared with {comparison.against} of {comparison.started_at}",
        f"{quiet} of {len(comparison.changes)} measurements within the noise",
        *(f"{note[0].upper()}{note[1:]}" for note in comparison.notes),
    ]
    columns = ("", "Measurement", "Verdict", "Before", "Now", "Noise", "By")
    rows = tuple(_change_row(change, record) for change in changes)
    nothing: tuple[Cell, ...] = ("Nothing", "", "", "", "", "", "")
    return Table("What has changed", columns, rows or (nothing,), ". ".join(said) + ".")


def _change_row(change: Change, record: EvaluationRecord) -> tuple[Cell, ...]:
    found = measurement_of(change, record)
    unit, label = ("", change.measurement or "the whole") if found is None else (found.unit, found.label)
    numbers = [Number(say_value(value, unit), value) for value in (change.old, change.new)]
    noise = "" if change.noise is None else say_difference(change.noise, unit)
    return (change.subject, label, change.verdict, *numbers, noise, change.reason)


def measurement_of(change: Change, record: EvaluationRecord) -> Measurement | None:
    """The measurement that a change speaks of, in the newer record; None where that has none."""
    for subject in record.subjects:
        if subject.name == change.subject:
            return subject.measurements.get(change.measurement or "")
    return None


def pairs_table(record: EvaluationRecord) -> Table | None:
    """Candidates compared with one another, sample by sample; None where there are none."""
    if not record.pairs:
        return None
    rows: list[tuple[Cell, ...]] = []
    for pair in record.pairs:
        one = next(one for one in record.candidates if one.name == pair.candidate).measurements[pair.measurement]
        low, high = (say_difference(end, one.unit) for end in (pair.difference.low, pair.difference.high))
        apart = "yes" if pair.difference.low > 0 or pair.difference.high < 0 else "no"
        mean = Number(say_difference(pair.difference.mean, one.unit), pair.difference.mean)
        rows.append((f"{pair.candidate} - {pair.against}", one.label, mean, f"{low} to {high}", apart))
    confidence = record.pairs[0].difference.confidence
    note = f"Mean of the paired differences, with their bootstrap interval of {confidence:.0%}."
    columns = ("Pair", "Measurement", "Difference", "Interval", "Apart")
    return Table("Candidates against one another", columns, tuple(rows), note)
