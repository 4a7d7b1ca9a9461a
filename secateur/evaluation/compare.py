"""What got better or worse between two records, beyond the noise that both have measured.

The rules, in this order:

- Counted values (bytes, parameters) have no noise: any difference counts.
- Values that differ by rounding alone (a millionth) are equal.
- Times and rates have repeats. They differ if they are further apart than the spreads of both together (how far a
  repeat lies from the value at most) and the share by which the reference's own moved: the reference has the same bytes
  in both, so that where its time moved the machine did. Times of other machines or thread counts are not compared.
- Means over the same samples (same protocol, same rows of a part, same reference) differ if the bootstrap interval of
  their paired difference leaves out 0.
- Other means differ if they are more than two standard errors apart: |new - old| > 2 sqrt(s1^2 + s2^2).
- Without a noise to hold them against, differences are unclear.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.evaluation.record import Change, Comparison, EvaluationRecord, Measurement, Run, Subject, Verdict

ROUNDING = 1e-6
"""Share of a value below which a difference is one of rounding."""


def compare_records(new: EvaluationRecord, old: EvaluationRecord, against: str) -> Comparison:
    """What has changed since an older record: the reference first, then each candidate, by their names.

    Args:
        new: the record.
        old: the older one.
        against: the older one's file.

    Raises:
        ValueError: they are of different kinds.
    """
    if new.kind != old.kind:
        raise ValueError(f"{against}: a record of the kind {old.kind!r} says nothing about one of {new.kind!r}")
    changes: list[Change] = []
    pairs = [(new.reference, old.reference)]
    before = {subject.name: subject for subject in old.candidates}
    for subject in new.candidates:
        if subject.name in before:
            pairs.append((subject, before.pop(subject.name)))
        else:
            changes.append(_whole(subject.name, "new", "the older record has no such candidate"))
    changes += [_whole(name, "gone", "only the older record has it") for name in before]
    found = [change for pair in pairs for change in _subject_changes(*pair, new, old)]
    return Comparison(against, old.runs[0].started_at, _notes(new, old), (*found, *changes))


def _notes(new: EvaluationRecord, old: EvaluationRecord) -> tuple[str, ...]:
    notes = []
    if not _same_bytes(new.reference, old.reference):
        notes.append("the reference has other bytes than it had")
    changed = sorted(
        name for name in {*new.protocol, *old.protocol} if new.protocol.get(name) != old.protocol.get(name)
    )
    if changed:
        notes.append(f"the protocol differs: {', '.join(changed)}")
    if not _same_machine(new.runs[0], old.runs[0]):
        notes.append("another machine, or another number of threads: times are not compared")
    return tuple(notes)


def _whole(name: str, verdict: Verdict, reason: str) -> Change:
    return Change(name, None, verdict, None, None, None, reason)


def _subject_changes(one: Subject, before: Subject, new: EvaluationRecord, old: EvaluationRecord) -> list[Change]:
    changes = []
    for name in dict.fromkeys((*one.measurements, *before.measurements)):
        after, earlier = one.measurements.get(name), before.measurements.get(name)
        if after is None or earlier is None:
            verdict: Verdict = "gone" if after is None else "new"
            then, now = (None if measurement is None else measurement.value for measurement in (earlier, after))
            changes.append(Change(one.name, name, verdict, then, now, None, "only one of the two records has it"))
            continue
        judged = _judge(name, one, before, new, old)
        changes.append(Change(one.name, name, judged.verdict, earlier.value, after.value, judged.noise, judged.reason))
    return changes


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Verdict
    noise: float | None
    reason: str


def _judge(name: str, one: Subject, before: Subject, new: EvaluationRecord, old: EvaluationRecord) -> _Judged:
    after, earlier = one.measurements[name], before.measurements[name]
    if after.unit != earlier.unit:
        return _Judged("unclear", None, f"the units differ: {earlier.unit or 'none'} and {after.unit or 'none'}")
    if after.value is None or earlier.value is None:
        return _not_finite(after, earlier)
    kinds = {after.noise.kind if after.noise else None, earlier.noise.kind if earlier.noise else None}
    difference = after.value - earlier.value
    if kinds == {"counted"}:
        return _beyond(after, difference, 0.0, "counted")
    if abs(difference) <= ROUNDING * max(abs(after.value), abs(earlier.value)):
        return _Judged("within noise", None, "equal but for rounding")
    if "repeats" in kinds:
        return _times(name, one, before, new, old)
    paired = _paired(name, one, before, new, old)
    if paired is not None:
        return paired
    if after.noise is None or earlier.noise is None:
        return _Judged("unclear", None, "its noise is not known")
    noise = 2.0 * math.hypot(after.noise.value, earlier.noise.value)
    return _beyond(after, difference, noise, "two standard errors of the difference")


def _beyond(after: Measurement, difference: float, noise: float, reason: str) -> _Judged:
    """The verdict on a difference that counts where it is larger than `noise`."""
    if abs(difference) <= noise:
        return _Judged("within noise", noise, reason)
    return _Judged(_direction(after, difference), noise, reason)


def _direction(after: Measurement, difference: float) -> Verdict:
    if after.better == "neither":
        return "different"
    return "better" if (difference > 0) == (after.better == "higher") else "worse"


def _not_finite(after: Measurement, earlier: Measurement) -> _Judged:
    if after.infinite and earlier.infinite:
        return _Judged("within noise", None, "both are infinite")
    if after.infinite or earlier.infinite:
        finite = earlier if after.infinite else after
        if finite.value is not None:
            return _Judged(_direction(after, 1.0 if after.infinite else -1.0), None, "one of the two is infinite")
    return _Judged("unclear", None, "not a number")


def _times(name: str, one: Subject, before: Subject, new: EvaluationRecord, old: EvaluationRecord) -> _Judged:
    after, earlier = one.measurements[name], before.measurements[name]
    assert after.value is not None and earlier.value is not None
    if not _same_machine(new.runs[one.run], old.runs[before.run]):
        return _Judged("unclear", None, "measured on another machine, or with other threads")
    spreads = [_spread(measurement) for measurement in (after, earlier)]
    if None in spreads:
        return _Judged("unclear", None, "without repeats its noise is not known")
    noise = sum(spread for spread in spreads if spread is not None)
    reason = "the spreads of both sets of repeats"
    same = _same_bytes(new.reference, old.reference)
    if one is new.reference and same:
        reason += "; with the same bytes, the machine or the software moved"
    elif same:
        drift = _drift(new.reference_measurements(one).get(name), old.reference_measurements(before).get(name))
        noise += abs(earlier.value) * drift
        reason += ", and what the reference's moved by"
    return _beyond(after, after.value - earlier.value, noise, reason)


def _spread(measurement: Measurement) -> float | None:
    """How far a repeat lies from the value at most; None where there are no two repeats."""
    if measurement.noise is None or len(measurement.noise.repeats) < 2 or measurement.value is None:
        return None
    return max(abs(repeat - measurement.value) for repeat in measurement.noise.repeats)


def _drift(now: Measurement | None, then: Measurement | None) -> float:
    """The share by which the reference's own measurement has moved; 0 where it is not known."""
    if now is None or then is None or now.value is None or not then.value:
        return 0.0
    return abs(now.value / then.value - 1.0)


def _paired(name: str, one: Subject, before: Subject, new: EvaluationRecord, old: EvaluationRecord) -> _Judged | None:
    """By the differences sample by sample; None where the samples are not the same ones."""
    if new.protocol != old.protocol or not _same_bytes(new.reference, old.reference):
        return None
    pair = matching_columns(name, one, before)
    if pair is None:
        return None
    from secateur.metrics.distribution.bootstrap import paired_interval

    interval = paired_interval(*pair)
    noise = max(interval.mean - interval.low, interval.high - interval.mean)
    reason = f"bootstrap over {interval.count} pairs"
    if interval.low <= 0.0 <= interval.high:
        return _Judged("within noise", noise, reason)
    return _Judged(_direction(one.measurements[name], interval.mean), noise, reason)


def matching_columns(name: str, one: Subject, other: Subject) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The values of a measurement on the same samples of two subjects.

    None where neither parts nor answers of both have them, they are not all finite, or they are fewer than two.
    """
    mine, theirs = one.measurements.get(name), other.measurements.get(name)
    if mine is not None and theirs is not None and mine.answers and theirs.answers:
        found = _answers(mine), _answers(theirs)
        return found if len(found[0]) == len(found[1]) >= 2 else None
    for title, part in one.parts.items():
        twin = other.parts.get(title)
        if twin is None or name not in part.columns or name not in twin.columns or part.rows != twin.rows:
            continue
        values = [tuple(v for v in table.columns[name].values if v is not None) for table in (part, twin)]
        if len(values[0]) == len(values[1]) == len(part.rows) >= 2 and all(map(math.isfinite, sum(values, ()))):
            return values[0], values[1]
    return None


def _answers(measurement: Measurement) -> tuple[float, ...]:
    """1 for each right answer, 0 for each wrong one."""
    digits = measurement.answers or ""
    bits = f"{int(digits, 16):0{4 * len(digits)}b}" if digits else ""
    return tuple(map(float, bits[: measurement.samples]))


def _same_bytes(one: Subject, other: Subject) -> bool:
    return one.sha256 is not None and one.sha256 == other.sha256


def _same_machine(one: Run, other: Run) -> bool:
    return (one.machine.processor, one.machine.gpu, one.machine.cores, one.threads) == (
        other.machine.processor,
        other.machine.gpu,
        other.machine.cores,
        other.threads,
    )
