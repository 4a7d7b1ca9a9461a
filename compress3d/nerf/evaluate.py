"""How close a field comes to photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.render import render
from compress3d.photographs import Pair, paired, quality_of_pairs
from compress3d.splats.evaluate import Quality
from secateur.console import Report, silent
from secateur.metrics.speed import Speed, measure_speed
from secateur.report.notebook import table_html
from secateur.report.record import Machine


@dataclass(frozen=True, slots=True)
class FieldEvaluation:
    """A field against photographs.

    Args:
        name: of the field's file.
        bytes: of the file.
        capture: name of the photographs.
        quality: against those of the test split, or all where there is none.
        speed: of rendering a view.
        skipped: photographs that the capture lists but does not have.
        seconds: time by step.
        machine: where it ran.
    """

    name: str
    bytes: int
    capture: str
    quality: Quality
    speed: Speed
    skipped: int
    seconds: dict[str, float]
    machine: Machine

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        from compress3d.nerf.tables import evaluation_table  # which names this class

        return table_html(evaluation_table(self))


def beside_photograph(field: Field, capture: Capture, index: int) -> Pair:
    """(render, photograph) of one view; see `compress3d.photographs.paired`."""
    return paired(render(field, capture.cameras, index, capture.background).image, capture, index)


def judge_trained(field: Field, capture: Capture, report: Report = silent) -> tuple[Quality | None, Speed]:
    """Quality of a field on its capture's test split, None where that is empty, and the speed of a view."""
    views = capture.test.tolist()
    quality = quality_to_photographs(field, capture, views, report) if views else None
    return quality, view_speed(field, capture, int((capture.test if views else capture.train)[0]))


def view_speed(field: Field, capture: Capture, view: int) -> Speed:
    """The time of rendering the field as one of the photographs was taken."""
    return measure_speed(lambda _: render(field, capture.cameras, view), frames=1, repeats=3)


def quality_to_photographs(field: Field, capture: Capture, views: Sequence[int], report: Report = silent) -> Quality:
    """PSNR and SSIM of renders against the photographs at `views`; see `compress3d.photographs.quality_of_pairs`."""
    return quality_of_pairs(partial(beside_photograph, field, capture), capture, views, report)
