"""The record of a run: one form for evaluations, compressions, trainings and recipes, as `results.json` holds it.

A record is JSON as `secateur.report.record.to_json` makes it: each dataclass here is an object with its fields, in
order, and a number that is not finite is null. `SCHEMA` names the form; `schema.json` beside this file says it for
programs, and `docs/record.md` for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from secateur.metrics.interval import Interval
from secateur.report.record import Machine

Schema = Literal["secateur.evaluation/1"]

SCHEMA: Schema = "secateur.evaluation/1"
"""Name and version of the form. Another number: a reader of this one would misread it."""

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a value would move if it were measured again.

    Args:
        kind: "counted": not at all (bytes, parameters); "standard error": of the mean over samples, as other samples
            would move it; "repeats": the standard deviation of repeats of the same measurement (times).
        value: in the unit of the measurement; 0 where counted.
        repeats: each repeat's value in order, in the unit of the measurement; empty for other kinds.
    """

    kind: Literal["counted", "standard error", "repeats"]
    value: float
    repeats: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number about a subject.

    Args:
        value: the number; null where it is not finite.
        unit: "dB", "bytes", "ms", "1/s", "share" (of 1); empty for a pure number, or a count.
        better: which way is better.
        label: what people call it.
        infinite: whether the value is null because it is infinity, as the PSNR of equal pictures is.
        samples: over how many views, images or answers it was taken; null where that has no meaning.
        noise: null where it is not known.
        interval: bootstrap interval of the mean over the samples; null where there is none.
        change: paired bootstrap interval of the difference to the reference, sample by sample; null where there is
            none.
        answers: of a share of right answers: which samples are right, as hexadecimal digits of a bit each, the first
            sample the highest; null elsewhere.
    """

    value: float | None
    unit: str
    better: Better
    label: str
    infinite: bool = False
    samples: int | None = None
    noise: Noise | None = None
    interval: Interval | None = None
    change: Interval | None = None
    answers: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a part: a number for each of its rows.

    Args:
        values: in the order of the rows; null where a number is not finite, or not there.
        unit: as that of a measurement.
        better: which way is better.
        label: what people call it.
    """

    values: tuple[float | None, ...]
    unit: str
    better: Better
    label: str


@dataclass(frozen=True, slots=True)
class Part:
    """A table that says where a subject's numbers come from: by view, class, attribute, layer.

    Args:
        by: what a row is: "view", "class", "attribute".
        rows: their names.
        columns: by name; a column that a measurement is the mean of has that measurement's name.
    """

    by: str
    rows: tuple[str, ...]
    columns: Mapping[str, Column]


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured: a file or folder, or a model.

    Args:
        name: of it; differs from the other subjects' names.
        path: as it was given, or the id of a model; null where no file holds it.
        sha256: of its bytes (a folder: of its files' names and bytes; photographs: of the pixels and poses that judge);
            null where no file holds it, or it lies among what the run itself writes.
        run: index into the record's runs: in which of them it was measured.
        measurements: by name, in the order to show them in. What has one name has one meaning and one unit.
        parts: by name.
        details: whatever else is known of it: how it was timed, how it came to be.
    """

    name: str
    path: str | None = None
    sha256: str | None = None
    run: int = 0
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """What was run, and on what.

    Args:
        command: the command line as it was typed.
        secateur: version.
        started_at: date and time in UTC, ISO 8601.
        seconds: by step; "name: step" where several candidates were made one after another.
        machine: where it ran.
        versions: of Python and the packages that matter.
        seeds: of all that is random, by what they are for.
        threads: that torch was held to while times were taken.
        load_average: of the machine over the minute before it began; null where the system has none.
        reference: in a merged record: what the reference measured in this run, by name. Empty in a record of one run.
    """

    command: str
    secateur: str
    started_at: str
    seconds: Mapping[str, float]
    machine: Machine
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    threads: int
    load_average: float | None
    reference: Mapping[str, Measurement] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two candidates compared sample by sample.

    Args:
        measurement: name of what is compared.
        candidate: name of the one.
        against: name of the other.
        difference: paired bootstrap interval of the first minus the second; without 0 in it, the two differ.
    """

    measurement: str
    candidate: str
    against: str
    difference: Interval


Verdict = Literal["better", "worse", "different", "within noise", "unclear", "new", "gone"]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one measurement of one subject since an older record.

    Args:
        subject: its name.
        measurement: its name; null where the whole subject is new or gone.
        verdict: "better", "worse", or "different" where neither way is better: beyond the noise. "unclear": it cannot
            be told, the reason says why. "new" and "gone": only one of the two records has it.
        old: value; null where there is none, or it is not finite.
        new: as `old`.
        noise: how large a difference could be noise, in the unit of the measurement; null where that is not known.
        reason: by which rule, in a few words.
    """

    subject: str
    measurement: str | None
    verdict: Verdict
    old: float | None
    new: float | None
    noise: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A record compared with an older one.

    Args:
        against: the older record's file.
        started_at: when the older record's first run began.
        notes: what besides the candidates is not as it was: the reference, the protocol, the machine.
        changes: subject by subject, the reference first.
    """

    against: str
    started_at: str
    notes: tuple[str, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """Candidates measured against a reference.

    Args:
        schema: the form's name and version.
        kind: what is measured: "splat", "field", "diffusion", "vit", "images", or a kind of a third party.
        runs: one; several where records were merged.
        protocol: how it was measured, by name: views, samples, data. Records that differ here cannot be merged.
        reference: what the candidates stand for: the original, the dense model, or photographs that judge.
        candidates: what was measured, or made; in the order in which they were given, or came to be.
        pairs: candidates compared with one another, where samples allow it.
        comparison: with an older record, where one was given.
        details: whatever else is known of the whole: options, the recipe, what was routed where.
    """

    schema: Schema = SCHEMA
    kind: str
    runs: tuple[Run, ...]
    protocol: Mapping[str, Any]
    reference: Subject
    candidates: tuple[Subject, ...]
    pairs: tuple[Pair, ...] = ()
    comparison: Comparison | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The reference, then the candidates."""
        return (self.reference, *self.candidates)

    def reference_measurements(self, subject: Subject) -> Mapping[str, Measurement]:
        """What the reference measured in the same run as a subject: times of one run belong together."""
        return {**self.reference.measurements, **self.runs[subject.run].reference}

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from secateur.evaluation.show import record_table  # which names this class
        from secateur.report.notebook import table_html

        return table_html(record_table(self))

    @property
    def worse(self) -> tuple[Change, ...]:
        """What got worse of the candidates since the older record; the reference is the control, and does not count."""
        changes = () if self.comparison is None else self.comparison.changes
        return tuple(one for one in changes if one.verdict == "worse" and one.subject != self.reference.name)
