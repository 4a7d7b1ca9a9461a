"""The page that shows what pruning a vision transformer did: accuracy, sizes, speed, classes, units and tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secateur.quantities import format_bytes
from secateur.report.page import Drawing, Figure, Image, Meter, Page, Result, Table, write_report
from secateur.report.record import Machine
from vit.choose import StepPlan
from vit.evaluate import EvaluatedModel, Evaluation, Pictures

if TYPE_CHECKING:
    from vit.prune import Pruning

_GAP = 8
"""Pixels between strips."""

_CONFUSIONS = 8
_CLASSES = 40


def write_page(record: Pruning, pictures: Pictures, directory: Path) -> Path:
    """Write `results.json` and `index.html` of a recipe's run; returns the page's path."""
    units = kept_units(record.steps)
    drawings = (Drawing("Units that are left, layer by layer", draw_units(units)),) if units else ()
    page = _page(
        record.evaluation,
        pictures,
        title=f"{Path(record.model).name}, pruned",
        subtitle=_said(record),
        tables=(_stages(record.seconds),),
        drawings=drawings,
        details={"Recipe": str(record.recipe)},
    )
    return write_report(page, record, directory)


def evaluation_page(record: Evaluation, pictures: Pictures, name: str) -> Page:
    """The page of an evaluation against the model `name`."""
    names = ", ".join(one.name for one in record.candidates)
    subtitle = f"{names} against {name}, on the same {record.images:,} images."
    return _page(record, pictures, title=name, subtitle=subtitle, tables=(), drawings=(), details={})


def _page(
    evaluation: Evaluation,
    pictures: Pictures,
    *,
    title: str,
    subtitle: str,
    tables: tuple[Table, ...],
    drawings: tuple[Drawing, ...],
    details: Mapping[str, str],
) -> Page:
    results = tuple(_result(one, evaluation, pictures, tables, drawings) for one in reversed(evaluation.candidates))
    return Page(
        title,
        subtitle,
        "dense",
        (),
        results,
        details={**_machine(evaluation.machine), **details, "Versions": _versions(evaluation.versions)},
    )


def _result(
    one: EvaluatedModel,
    evaluation: Evaluation,
    pictures: Pictures,
    tables: tuple[Table, ...],
    drawings: tuple[Drawing, ...],
) -> Result:
    own = [_compared(evaluation)]
    if one.classified is not None:
        own += [_by_class(one, evaluation), *_confusions(one, evaluation)]
    drawn = drawings
    if one.name in pictures:
        note = "The image, then what layers see of it, where that changes: grey patches are gone, merged ones mixed."
        drawn = (Drawing("Tokens that are left", stacked(pictures[one.name]), note), *drawings)
    return Result(one.name, _figures(evaluation.reference, one), (), (), (), (*own, *tables), drawn)


def _figures(dense: EvaluatedModel, one: EvaluatedModel) -> tuple[Figure, ...]:
    before, after = dense.cost, one.cost
    figures = []
    if one.classified is not None and dense.classified is not None:
        change = f"{100 * one.classified.change:+.2f} ± {100 * one.classified.change_error:.2f} points"
        figures.append(Figure("Accuracy", f"{one.classified.accuracy:.2%}", f"{dense.classified.accuracy:.2%}", change))
    elif one.embedding_error is not None:
        figures.append(Figure("Error of the embedding", f"{one.embedding_error:.2%}", None, "of its squares"))
    figures += [
        Figure(
            "Images per second",
            f"{one.images_per_second:,.0f}",
            f"{dense.images_per_second:,.0f}",
            f"{one.images_per_second / dense.images_per_second:.2f} times as fast",
        ),
        Figure("Multiply-adds", short(one.macs), short(dense.macs), f"{one.macs / dense.macs:.1%}"),
        Figure("Parameters", short(after.params), short(before.params), f"{after.params / before.params:.1%}"),
        Figure("Size", format_bytes(after.bytes), format_bytes(before.bytes)),
    ]
    return tuple(figures)


def _compared(evaluation: Evaluation) -> Table:
    """All models beside one another."""
    rows = []
    for one in (evaluation.reference, *evaluation.candidates):
        if one.classified is not None:
            quality = (f"{one.classified.accuracy:.2%}", f"{one.classified.agreement:.2%}")
        else:
            quality = ("", "" if one.embedding_error is None else f"{one.embedding_error:.4f}")
        rows.append(
            (
                one.name,
                *quality,
                f"{one.images_per_second:,.0f}",
                short(one.macs),
                short(one.cost.params),
            )
        )
    second = "Agreement" if evaluation.reference.classified is not None else "Embedding error"
    columns = ("Model", "Accuracy", second, "Images/s", "MACs", "Params")
    cost = evaluation.reference.cost
    note = (
        f"{evaluation.images:,} images. MACs are multiply-adds of one image, attention counted. Timed with batches of "
        f"{cost.batch_size} on {_threads(cost.latency.threads)}. Agreement: the first choice is the dense model's."
    )
    return Table("Step by step", columns, tuple(rows), note)


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _by_class(one: EvaluatedModel, evaluation: Evaluation) -> Table:
    assert one.classified is not None and evaluation.reference.classified is not None
    before, after = evaluation.reference.classified.by_class, one.classified.by_class
    names = sorted(after, key=lambda name: after[name] - before[name])
    rows = tuple(
        (name, f"{before[name]:.1%}", Meter(f"{after[name]:.1%}", after[name]), _points(after[name] - before[name]))
        for name in names[:_CLASSES]
    )
    note = f"The {_CLASSES} that lost most, of {len(names)}." if len(names) > _CLASSES else None
    return Table("Accuracy by class", ("Class", "Dense", one.name.capitalize(), "Change"), rows, note)


def _confusions(one: EvaluatedModel, evaluation: Evaluation) -> list[Table]:
    """What is mistaken for what more often, or less often, than by the dense model."""
    assert one.classified is not None and evaluation.reference.classified is not None
    before, after = np.array(evaluation.reference.classified.confusion), np.array(one.classified.confusion)
    changes = after - before
    np.fill_diagonal(changes, 0)
    order = np.argsort(-np.abs(changes), axis=None, kind="stable")[:_CONFUSIONS]
    rows = []
    for true, chosen in zip(*np.unravel_index(order, changes.shape), strict=True):
        if changes[true, chosen]:
            pair = f"{evaluation.classes[true]} taken for {evaluation.classes[chosen]}"
            counts = f"{before[true, chosen]:,}", f"{after[true, chosen]:,}"
            rows.append((pair, *counts, f"{changes[true, chosen]:+,}"))
    if not rows:
        return []
    columns = ("Mistake", "Dense", one.name.capitalize(), "Change")
    return [Table("Mistakes that changed most", columns, tuple(rows), "Images.")]


def _points(change: float) -> str:
    return f"{100 * change:+.1f}"


def _stages(seconds: Mapping[str, float]) -> Table:
    longest = max(seconds.values())
    rows = tuple((stage, Meter(f"{one:.1f} s", one / longest if longest else 0.0)) for stage, one in seconds.items())
    return Table("Time", ("Stage", "Seconds"), rows, total=("Total", f"{sum(seconds.values()):.1f} s"))


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


def _machine(machine: Machine) -> dict[str, str]:
    return {"Machine": f"{machine.processor}, {machine.cores} cores", "GPU": machine.gpu or "none"}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def short(count: float) -> str:
    """A count in thousands, millions, billions or trillions."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"
