"""Several runs as one comparison: the candidates of all, against the reference that they share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from secateur.evaluation.compare import matching_columns
from secateur.evaluation.record import EvaluationRecord, Pair, Run, Subject

_AGREEMENT = 1e-6
"""Share of a value within which two runs must agree on what the reference measures."""


def merge_records(records: Sequence[EvaluationRecord], names: Sequence[str]) -> EvaluationRecord:
    """One record with the candidates of all, each with the run that it was measured in.

    The runs must be of one kind and one protocol, and have the same reference: by its bytes, or, where no file held it,
    by its name and everything that it measured but for times. Candidates whose names are the same, but not their bytes,
    get their run's name with theirs; of those that are the same throughout, the first stays.

    Args:
        records: of the runs; what is already merged may be among them.
        names: of the runs, such as their folders' names.

    Raises:
        ValueError: there are none, or the runs do not fit together; says which and why.
    """
    if not records:
        raise ValueError("there are no runs to merge")
    first = records[0]
    for record, name in zip(records[1:], names[1:], strict=True):
        _check(first, names[0], record, name)
    runs: list[Run] = []
    candidates: list[Subject] = []
    for record in records:
        shift = len(runs)
        alone = len(records) == 1 or len(record.runs) > 1
        own = [run if alone else replace(run, reference=record.reference.measurements) for run in record.runs]
        runs += own
        candidates += [replace(one, run=one.run + shift) for one in record.candidates]
    origin = [name for record, name in zip(records, names, strict=True) for _ in record.candidates]
    named = _named(candidates, origin)
    details = (
        first.details if len(records) == 1 else {name: one.details for name, one in zip(names, records, strict=True)}
    )
    return replace(
        first, runs=tuple(runs), candidates=tuple(named), pairs=candidate_pairs(named), comparison=None, details=details
    )


def candidate_pairs(candidates: Sequence[Subject], *, seed: int = 0) -> tuple[Pair, ...]:
    """Each two candidates, compared sample by sample in every measurement of which both have the same samples.

    Args:
        candidates: with parts whose columns have the names of measurements.
        seed: of the bootstrap's draws.
    """
    from secateur.metrics.distribution.bootstrap import paired_interval

    pairs = []
    for one, other in combinations(candidates, 2):
        for name in one.measurements:
            columns = matching_columns(name, one, other)
            if columns is not None:
                pairs.append(Pair(name, one.name, other.name, paired_interval(*columns, seed=seed)))
    return tuple(pairs)


def _check(first: EvaluationRecord, name: str, other: EvaluationRecord, other_name: str) -> None:
    if first.kind != other.kind:
        raise ValueError(f"{other_name} is a run of the kind {other.kind!r}, {name} one of {first.kind!r}")
    one, two = first.reference, other.reference
    if not _same_reference(one, two):
        raise ValueError(
            f"{other_name} has another reference ({two.name}) than {name} ({one.name}): runs with the same one merge"
        )
    for key in dict.fromkeys((*first.protocol, *other.protocol)):
        mine, theirs = first.protocol.get(key), other.protocol.get(key)
        if mine != theirs:
            raise ValueError(f"{other_name} was measured otherwise than {name}: {key} is {theirs}, and there {mine}")


def _same_reference(one: Subject, other: Subject) -> bool:
    if one.sha256 is not None and other.sha256 is not None:
        return one.sha256 == other.sha256
    if one.name != other.name or one.measurements.keys() != other.measurements.keys():
        return False
    for name, mine in one.measurements.items():
        theirs = other.measurements[name]
        if mine.noise is not None and mine.noise.kind == "repeats":
            continue
        values = [math.nan if value is None else value for value in (mine.value, theirs.value)]
        if (mine.value is None) != (theirs.value is None) or abs(values[0] - values[1]) > _AGREEMENT * abs(values[0]):
            return False
    return True


def _named(candidates: Sequence[Subject], origin: Sequence[str]) -> list[Subject]:
    """The candidates, once each, with names that differ."""
    kept: dict[tuple[str, str | None], tuple[Subject, str]] = {}
    for index, (one, run) in enumerate(zip(candidates, origin, strict=True)):
        kept.setdefault((one.name, one.sha256 or str(index)), (one, run))
    counts = Counter(one.name for one, _ in kept.values())
    named: list[Subject] = []
    for one, run in kept.values():
        name = one.name if counts[one.name] == 1 else f"{run}: {one.name}"
        taken = {other.name for other in named}
        number = 2
        while name in taken:
            name, number = f"{run}: {one.name} ({number})", number + 1
        named.append(replace(one, name=name))
    return named
