"""A smaller field: rows and levels of least worth go, entries get few bits, training wins back: `compress(field)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from compress3d.captures import Capture
from compress3d.nerf.evaluate import quality_to_photographs
from compress3d.nerf.field import Field
from compress3d.nerf.importance import VisitedMagnitude
from compress3d.nerf.objective import PhotographError
from compress3d.nerf.recover import recover
from compress3d.nerf.rounding import TableRounding, bits_of_levels, rounding_for
from compress3d.nerf.teacher import OWN_RENDERS, teacher_capture, views_around
from compress3d.nerf.train import PACKAGES, Training
from compress3d.nerf.units import LEVELS, ROWS, rows_by_level
from compress3d.splats.evaluate import Quality
from secateur.allocation import Budget, allocate
from secateur.console import Report, silent, stretch
from secateur.importance import Fisher
from secateur.report.notebook import table_html
from secateur.report.record import Machine, Steps, describe_machine, package_versions
from secateur.training import FitRecord
from secateur.units import Keep, Scores

Worth = Literal["fisher", "visits"]

RECOVER = 300
_TEACHER_VIEWS, _TEACHER_SIZE = 32, 200


@dataclass(frozen=True, slots=True)
class CompressRecord:
    """What a compression did.

    Args:
        capture: name of the photographs that it went by, or "the field's own renders".
        rows: of the tables, before and after.
        levels: of the grid, before and after.
        bytes_before: of the field as it was, 32 bits an entry, all that it needs to render.
        bytes: of the field as it is now: of its file, once that is written.
        before: quality of the field as it was; None without views to judge by.
        cut: quality after rows and levels were cut, and entries rounded.
        after: quality of what is returned.
        fit: the recovery.
        seconds: time by step.
        machine: where it ran.
        versions: of the packages that matter.
        options: the settings.
    """

    capture: str
    rows: tuple[int, int]
    levels: tuple[int, int]
    bytes_before: int
    bytes: int
    before: Quality | None
    cut: Quality | None
    after: Quality | None
    fit: FitRecord
    seconds: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    options: dict[str, object]

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.nerf.tables import compression_table  # which names this class

        return table_html(compression_table(self))


def compress(
    field: Field,
    capture: Capture | None = None,
    *,
    keep: float | int = 0.25,
    levels: int | None = None,
    bits: int | Sequence[int] | None = 8,
    worth: Worth = "fisher",
    steps: int = RECOVER,
    training: Training | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    report: Report = silent,
) -> tuple[Field, TableRounding | None, CompressRecord]:
    """A smaller field; `field` stays as it is. Cells that it found empty stay empty.

    Args:
        field: to be made smaller.
        capture: photographs, of which those of the test split only judge; None: 32 of the field's own renders.
        keep: rows of the tables that stay, a share or a count.
        levels: how many levels stay, those of most worth; None: all.
        bits: of a table entry, one number or one for each level that stays; None: 32, as it is.
        worth: "fisher" (`Fisher` on the photographs' error) or "visits" (`VisitedMagnitude`).
        steps: of recovery.
        training: of the recovery; see `recover`.
        seed: of what is drawn at random.
        checkpoint: file that is written as recovery goes, when it is stopped by Ctrl-C or SIGTERM, and at the end.
        resume: go on from `checkpoint` if there is one, to the same end; what comes before recovery is done again.
        report: told how much is done.

    Returns:
        the field; the rounding that its file is to be written with, or None; and the record.

    Raises:
        ValueError: an option is out of range, there are no training photographs, or the checkpoint is that of another
            run.
        KeyboardInterrupt: Ctrl-C in recovery, after the step that it struck; says where the checkpoint is.
    """
    check_options(field, keep, levels, bits, worth, steps)
    clock = Steps()
    options: dict[str, object] = {
        "keep": keep,
        "levels": levels,
        "bits": bits,
        "worth": worth,
        "steps": steps,
        "seed": seed,
    }
    with clock("look"):
        seen = _teacher(field, stretch(report, 0.0, 0.05)) if capture is None else capture
        before = _quality(field, seen, stretch(report, 0.05, 0.1))
    with clock("score"):
        report(0.1, "scoring rows")
        scores = score_rows(field, seen, worth, seed)
    with clock("cut"):
        small = field.cut(keep_best(field, scores, keep, levels))
        rounding = None if bits is None else rounding_for(small, bits)
        exact = small.table.detach().clone()
        if rounding is not None:
            small.table.data.copy_(rounding.values(rounding.codes(exact)))
        cut = _quality(small, seen, stretch(report, 0.2, 0.25))
        small.table.data.copy_(exact)
    with clock("recover"):
        fit = recover(
            small,
            seen,
            steps,
            rounding=rounding,
            training=training,
            checkpoint=checkpoint,
            resume=resume,
            report=stretch(report, 0.25, 0.95),
        )
    with clock("judge"):
        after = _quality(small, seen, stretch(report, 0.95, 1.0))
    return (
        small,
        rounding,
        CompressRecord(
            capture=seen.name,
            rows=(len(field.table), len(small.table)),
            levels=(len(field.levels), len(small.levels)),
            bytes_before=field.bytes,
            bytes=small.bytes,
            before=before,
            cut=cut,
            after=after,
            fit=fit,
            seconds=clock.seconds,
            machine=describe_machine(),
            versions=package_versions(*PACKAGES),
            options=options,
        ),
    )


def score_rows(field: Field, capture: Capture, worth: Worth, seed: int = 0) -> Scores:
    """Scores of all units of a field; those of rows and levels are what `compress` goes by."""
    if worth == "visits":
        return VisitedMagnitude(seed=seed).score(field, capture)
    return Fisher().score(field, PhotographError(capture, batches=16, seed=seed))


def keep_best(field: Field, scores: Scores, keep: float | int, levels: int | None = None) -> Keep:
    """What stays of a field: the best levels, and of their rows the best, in all as many as `keep` says of all rows."""
    groups = {group.name: group for group in field.groups()}
    scores = {name: values.cpu() for name, values in scores.items()}
    kept: Keep = {name: torch.ones(group.size, dtype=torch.bool) for name, group in groups.items()}
    if levels is not None:
        kept |= allocate(scores, [groups[LEVELS]], Budget(limit=levels))
    if ROWS in groups:
        stays = kept[LEVELS].repeat_interleave(rows_by_level(field))
        left = torch.where(stays, scores[ROWS], -torch.inf)
        budget = Budget(share=keep) if isinstance(keep, float) else Budget(limit=keep)
        kept |= allocate({ROWS: left}, [groups[ROWS]], budget)
        kept[ROWS] &= stays
    return kept


def check_options(
    field: Field, keep: float | int, levels: int | None, bits: int | Sequence[int] | None, worth: str, steps: int
) -> None:
    """Raise ValueError unless `compress` can do this to the field."""
    if not (0 < keep <= 1 if isinstance(keep, float) else keep >= 1):
        raise ValueError(f"keep must be a share above 0 and at most 1.0, or a count from 1 up, got {keep}")
    if levels is not None and not 1 <= levels <= len(field.levels):
        raise ValueError(f"levels must be 1 to {len(field.levels)}, which the field has, got {levels}")
    if bits is not None:
        bits_of_levels(bits, levels or len(field.levels))
    if worth not in ("fisher", "visits"):
        raise ValueError(f"worth must be 'fisher' or 'visits', got {worth!r}")
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")


def _teacher(field: Field, report: Report) -> Capture:
    return teacher_capture(field, views_around(field.box, _TEACHER_VIEWS, _TEACHER_SIZE), report)


def _quality(field: Field, capture: Capture, report: Report) -> Quality | None:
    views = capture.test.tolist()
    if not views:
        return None
    quality = quality_to_photographs(field, capture, views, report)
    return replace(quality, reference=OWN_RENDERS) if capture.name == OWN_RENDERS else quality
