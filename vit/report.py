"""The pages that show what pruning a vision transformer did: which mistakes, units and tokens changed, and what the
record says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secateur.recipe import NAME as RECIPE
from secateur.report.page import Cell, Drawing, Image, Number, Page, Result, Table
from vit.choose import StepPlan
from vit.evaluate import DENSE, EvaluatedModel, Evaluation, Pictures

if TYPE_CHECKING:
    from vit.outcome import Pruning

_GAP = 8
"""Pixels between strips."""

_CONFUSIONS = 8


def pruning_page(record: Pruning, pictures: Pictures) -> Page:
    """What a recipe's run left of units and tokens, and which mistakes changed."""
    units = kept_units(record.steps)
    drawings = (Drawing("Units that are left, layer by layer", draw_units(units)),) if units else ()
    title = f"{Path(record.model).name}, pruned"
    page = _page(record.evaluation, pictures, title, _said(record), drawings)
    return replace(page, links={"The recipe": RECIPE}, chosen=len(page.results) - 1)


def evaluation_page(record: Evaluation, pictures: Pictures, name: str) -> Page:
    """The pictures of an evaluation against the model `name`, and its mistakes."""
    names = ", ".join(one.name for one in record.candidates)
    return _page(record, pictures, name, f"{names} against {name}, on the same {record.images:,} images.")


def _page(
    evaluation: Evaluation, pictures: Pictures, title: str, subtitle: str, drawings: tuple[Drawing, ...] = ()
) -> Page:
    results = tuple(_result(one, evaluation, pictures, drawings) for one in evaluation.candidates)
    return Page(title, subtitle, DENSE, (), results)


def _result(one: EvaluatedModel, evaluation: Evaluation, pictures: Pictures, drawings: tuple[Drawing, ...]) -> Result:
    drawn = drawings
    if one.name in pictures:
        note = "The image, then what layers see of it, where that changes: grey patches are gone, merged ones mixed."
        drawn = (Drawing("Tokens that are left", stacked(pictures[one.name]), note), *drawings)
    tables = () if one.classified is None else _confusions(one, evaluation)
    return Result(one.name, tables=tuple(tables), drawings=drawn)


def _confusions(one: EvaluatedModel, evaluation: Evaluation) -> list[Table]:
    """What is mistaken for what more often, or less often, than by the dense model."""
    assert one.classified is not None and evaluation.reference.classified is not None
    before, after = np.array(evaluation.reference.classified.confusion), np.array(one.classified.confusion)
    changes = after - before
    np.fill_diagonal(changes, 0)
    order = np.argsort(-np.abs(changes), axis=None, kind="stable")[:_CONFUSIONS]
    rows: list[tuple[Cell, ...]] = []
    for true, chosen in zip(*np.unravel_index(order, changes.shape), strict=True):
        if changes[true, chosen]:
            pair = f"{evaluation.classes[true]} taken for {evaluation.classes[chosen]}"
            counts = (
                Number(f"{int(counted[true, chosen]):,}", int(counted[true, chosen])) for counted in (before, after)
            )
            change = int(changes[true, chosen])
            rows.append((pair, *counts, Number(f"{change:+,}", change)))
    if not rows:
        return []
    columns = ("Mistake", DENSE, one.name, "change")
    return [Table("Mistakes that changed most", columns, tuple(rows), "Images.")]


def _points(change: float) -> str:
    return f"{100 * change:+.1f}"


def kept_units(steps: Sequence[StepPlan]) -> dict[str, list[float]]:
    """Kind of unit -> share of the units that is left, layer by layer, of the steps that took units."""
    shares: dict[str, dict[str, float]] = {}
    for step in steps:
        for name, (kept, size) in step.units.items():
            owner, _, last = name.rpartition(".")
            kind, layer = (last, owner) if last in ("heads", "head_dims", "neurons", "embedding") else ("modules", name)
            by_layer = shares.setdefault(kind, {})
            by_layer[layer] = by_layer.get(layer, 1.0) * (kept / size if size else 0.0)
    return {kind: list(by_layer.values()) for kind, by_layer in shares.items()}


def draw_units(units: Mapping[str, Sequence[float]]) -> Image:
    """Bars of what is left in each layer, a row of them for each kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(7.2, 1.5 * len(units) + 0.5), dpi=140, layout="constrained")
    canvas = FigureCanvasAgg(sheet)
    for index, (kind, shares) in enumerate(units.items()):
        axes = sheet.add_subplot(len(units), 1, index + 1)
        axes.bar(range(len(shares)), [1.0] * len(shares), color="#dfe7e2", width=0.7)
        axes.bar(range(len(shares)), shares, color="#2f7d5b", width=0.7)
        axes.set(ylim=(0, 1.02), ylabel=kind.replace("_", " "), xticks=range(len(shares)))
        axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axes.spines[["top", "right"]].set_visible(False)
        if index == len(units) - 1:
            axes.set_xlabel("layer, in the order of the model")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def stacked(strips: Sequence[NDArray[np.uint8]]) -> Image:
    """Strips below one another, on white."""
    width = max(strip.shape[1] for strip in strips)
    height = sum(strip.shape[0] + _GAP for strip in strips) - _GAP
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = 0
    for strip in strips:
        sheet[top : top + strip.shape[0], : strip.shape[1]] = strip
        top += strip.shape[0] + _GAP
    return sheet


def _said(record: Pruning) -> str:
    before, after = record.evaluation.reference, record.evaluation.candidates[-1]
    faster = after.images_per_second / before.images_per_second
    said = f"{after.macs / before.macs:.1%} of the multiply-adds are left, {faster:.2f} times as fast"
    if after.classified is not None:
        said += f", accuracy {_points(after.classified.change)} points"
    return f"{said}; steps: {', '.join(step.name for step in record.steps)}."
