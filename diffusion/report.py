"""The page that shows what pruning a diffusion model did: the same samples before and after, sizes, times, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image as Pictures
from torch import Tensor

from diffusion.evaluate import DENSE, EvaluatedModel, Evaluation
from secateur.files import replacing_file
from secateur.quantities import format_bytes, format_decibels
from secateur.report.page import Figure, Image, Meter, Page, Result, Table, View, errors_between, write_report
from secateur.report.record import Machine

if TYPE_CHECKING:
    from diffusion.aptp.report import RouterRecord
    from diffusion.aptp.run import ExpertsRecord
    from diffusion.prune import Pruning

_SIDE = 640
"""Pixels of a grid's longer side, about."""

_SINGLES = 4

_SIDE_BY_SIDE = 3
"""Models that are a column of a table each; more are a row each."""

_GAP = 4
"""Pixels between pictures."""


def write_page(record: Pruning, pictures: Mapping[str, Float[Tensor, "K C H W"]], directory: Path) -> Path:
    """Write `results.json`, `index.html` and `samples.png` of a recipe's run; returns the page's path."""
    return _written(
        record,
        record.evaluation,
        pictures,
        directory,
        title=f"{record.model}, pruned",
        subtitle=_said(record),
        tables=(*([_units(record.kinds)] if record.kinds else []), _stages(record.seconds)),
        details={"Recipe": "recipe.yaml, beside this page"},
    )


def write_experts_page(
    record: ExpertsRecord, pictures: Mapping[str, Float[Tensor, "K C H W"]], directory: Path
) -> Path:
    """Write `results.json`, `index.html` and `samples.png` of a run that trained experts; returns the page's path."""
    first, *others = record.routers.values()
    subtitle = (
        f"{_counted(len(first.experts), 'expert')}, which take {first.share:.1%} of the multiply-adds in the mean"
    )
    against = f", against one network of {others[0].share:.1%}." if others else "."
    routers = [_experts(name, router) for name, router in record.routers.items()]
    return _written(
        record,
        record.evaluation,
        pictures,
        directory,
        title=f"{record.model}, a network for each prompt",
        subtitle=subtitle + against,
        tables=(*routers, _routes(record.routes), _stages(record.seconds)),
        details={"Recipe": "recipe.yaml, beside this page"},
    )


def evaluation_page(record: Evaluation, pictures: Mapping[str, Float[Tensor, "K C H W"]], name: str) -> Page:
    """The page of an evaluation against the model `name`."""
    names = ", ".join(one.name for one in record.candidates)
    subtitle = f"{names} against {name}, on the same seeds."
    return _page(record, pictures, title=name, subtitle=subtitle, tables=(), details={})


def _written(
    record: Any,
    evaluation: Evaluation,
    pictures: Mapping[str, Tensor],
    directory: Path,
    **shown: Any,
) -> Path:
    page = _page(evaluation, pictures, **shown)
    side_by_side(pictures, directory / "samples.png")
    return write_report(page, record, directory)


def _page(
    evaluation: Evaluation,
    pictures: Mapping[str, Tensor],
    *,
    title: str,
    subtitle: str,
    tables: tuple[Table, ...],
    details: Mapping[str, str],
) -> Page:
    shown = {name: _views(images) for name, images in pictures.items()}
    names = ["all samples", *(f"sample {index + 1}" for index in range(len(shown[DENSE]) - 1))]
    return Page(
        title,
        subtitle,
        DENSE,
        tuple(View(name, image) for name, image in zip(names, shown[DENSE], strict=True)),
        tuple(_result(one, evaluation, shown, tables) for one in evaluation.candidates),
        details={**_machine(evaluation.machine), **details, "Versions": _versions(evaluation.versions)},
    )


def side_by_side(pictures: Mapping[str, Float[Tensor, "K C H W"]], path: Path) -> None:
    """Write the grids of all models into one picture, from left to right: the dense one's, then the others'."""
    grids = [grid(images) for images in pictures.values()]
    gap = np.full((grids[0].shape[0], 8 * _GAP, 3), 255, np.uint8)
    parts = [part for one in grids for part in (gap, one)][1:]
    with replacing_file(path) as temporary:
        Pictures.fromarray(np.concatenate(parts, axis=1)).save(temporary, "PNG")


def grid(images: Float[Tensor, "K C H W"]) -> Image:
    """Pictures in [0, 1] side by side, about as many rows as columns; small ones enlarged, to about 640 pixels."""
    columns = int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    factor = max(1, _SIDE // (columns * max(images.shape[2:])))
    cells = [_enlarged(_levels(one), factor) for one in images]
    height, width = cells[0].shape[:2]
    sheet = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = cell
    return sheet


def _enlarged(image: Image, factor: int) -> Image:
    """The picture with each pixel a square of as many."""
    return np.asarray(image.repeat(factor, axis=0).repeat(factor, axis=1))


def _views(images: Float[Tensor, "K C H W"]) -> list[Image]:
    """The grid, and the first few alone."""
    whole = grid(images)
    height, width = whole.shape[:2]
    return [whole, *(_fitted(_levels(one), height, width) for one in images[:_SINGLES])]


def _fitted(image: Image, height: int, width: int) -> Image:
    """As large as the grid: a page's views have one size."""
    return np.asarray(Pictures.fromarray(image).resize((width, height), Pictures.Resampling.NEAREST))


def _levels(image: Float[Tensor, "C H W"]) -> Image:
    pixels = (image.expand(3, -1, -1).permute(1, 2, 0).clamp(0, 1) * 255).round()
    return np.asarray(pixels.cpu().numpy(), np.uint8)


def _result(
    one: EvaluatedModel, evaluation: Evaluation, shown: Mapping[str, Sequence[Image]], tables: tuple[Table, ...]
) -> Result:
    images = tuple(shown[one.name])
    errors = tuple(errors_between(mine, dense) for mine, dense in zip(images, shown[DENSE], strict=True))
    psnr = () if one.paired is None else one.paired.psnr
    captions = ("all samples on the same seeds", *(format_decibels(value) for value in psnr[: len(images) - 1]))
    captions = (*captions, *[""] * (len(images) - len(captions)))
    return Result(
        one.name, _figures(evaluation.reference, one), images, errors, captions, (_compared(evaluation), *tables)
    )


def _figures(dense: EvaluatedModel, one: EvaluatedModel) -> tuple[Figure, ...]:
    figures: list[Figure] = []
    if one.cost is not None and dense.cost is not None:
        before, after = dense.cost, one.cost
        macs, dense_macs = (_short(cost.macs / cost.batch_size) for cost in (after, before))
        figures += [
            Figure("Parameters", _short(after.params), _short(before.params), f"{after.params / before.params:.1%}"),
            Figure("Multiply-adds", macs, dense_macs, f"{after.macs / before.macs:.1%}, of one sample"),
            Figure("Size", format_bytes(after.bytes), format_bytes(before.bytes)),
            Figure(
                "Latency",
                f"{after.latency.median_ms:.1f} ms",
                f"{before.latency.median_ms:.1f} ms",
                f"{before.latency.median_ms / after.latency.median_ms:.2f} times as fast",
            ),
        ]
    if one.paired is not None:
        note = "against the dense model's pictures"
        figures.append(Figure("PSNR", format_decibels(one.paired.mean_psnr), None, note))
    for mine, theirs in zip(one.distances, dense.distances, strict=True):
        figures.append(Figure(mine.name, f"{mine.frechet:.2f}", f"{theirs.frechet:.2f}", f"{mine.samples} samples"))
    if one.accuracy is not None and dense.accuracy is not None:
        figures.append(Figure("Right class", f"{one.accuracy.mean:.1%}", f"{dense.accuracy.mean:.1%}"))
    return tuple(figures)


def _compared(evaluation: Evaluation) -> Table:
    """All models beside one another."""
    models = (evaluation.reference, *evaluation.candidates)
    rows: list[tuple[str, ...]] = []
    if all(one.cost for one in models):
        costs = [one.cost for one in models if one.cost]
        rows += [
            ("Parameters", *(f"{cost.params:,}" for cost in costs)),
            (f"Multiply-adds, batch of {costs[0].batch_size}", *(f"{cost.macs:,}" for cost in costs)),
            ("Bytes", *(f"{cost.bytes:,}" for cost in costs)),
            (
                f"Latency, batch of {costs[0].batch_size}, {_counted(costs[0].latency.threads, 'thread')}",
                *(f"{cost.latency.median_ms:.2f} ms" for cost in costs),
            ),
        ]
    for index, distance in enumerate(evaluation.reference.distances):
        rows.append((distance.name, *(f"{one.distances[index].frechet:.3f}" for one in models)))
        rows.append(("Kernel distance", *(f"{one.distances[index].kid.mean:.5f}" for one in models)))
    if all(one.accuracy for one in models):
        rows.append(("Right class", *(f"{one.accuracy.mean:.1%}" for one in models if one.accuracy)))
    errors = ["reference" if one.paired is None else f"{one.paired.mean_latent_mse:.5f}" for one in models]
    rows.append(("Mean squared error of latents", *errors))
    columns = ("", *(one.name for one in models))
    if len(models) <= _SIDE_BY_SIDE:
        return Table("Before and after", columns, tuple(rows))
    measures, turned = ("", *(row[0] for row in rows)), zip(columns[1:], *(row[1:] for row in rows), strict=True)
    return Table("Before and after", measures, tuple(turned))


def _units(kinds: Mapping[str, tuple[int, int]]) -> Table:
    rows = tuple(
        (kind, Meter(f"{kept:,} of {size:,}", kept / size), f"{kept / size:.1%}")
        for kind, (kept, size) in kinds.items()
    )
    return Table("What stays", ("Units", "Kept", "Share"), rows)


def _experts(name: str, router: RouterRecord) -> Table:
    rows = tuple(
        (
            f"{code}: {'; '.join(one.prompts[:2])}{' ...' if len(one.prompts) > 2 else ''}",
            Meter(f"{one.share:.1%}", one.share),
            f"{one.params:,}",
            Meter(f"{one.used:.1%}", one.used),
            f"{len(one.prompts):,}",
        )
        for code, one in enumerate(router.experts)
    )
    columns = ("Prompts such as", "Multiply-adds", "Parameters", "Of samples", "Prompts")
    total = ("In the mean", f"{router.share:.1%}", "", "", "")
    note = "Shares are of the dense network, and of the training samples."
    return Table(name.capitalize(), columns, rows, note, total)


def _routes(routes: Mapping[str, int]) -> Table:
    shown = list(routes.items())[:32]
    return Table("Which expert draws what", ("Prompt", "Expert"), tuple((text, str(code)) for text, code in shown))


def _stages(seconds: Mapping[str, float]) -> Table:
    longest = max(seconds.values())
    rows = tuple((stage, Meter(f"{one:.1f} s", one / longest if longest else 0.0)) for stage, one in seconds.items())
    return Table("Time", ("Stage", "Seconds"), rows, total=("Total", f"{sum(seconds.values()):.1f} s"))


def _said(record: Pruning) -> str:
    share = record.plan.pruned.params / record.plan.dense.params
    by = "named modules went" if record.criterion is None else f"units chosen by {record.criterion}"
    trained = "" if record.recovery is None else f", then trained for {record.recovery.steps} steps"
    return f"{share:.1%} of the parameters of the {record.component} are left: {by}{trained}."


def _machine(machine: Machine) -> dict[str, str]:
    return {"Machine": f"{machine.processor}, {machine.cores} cores", "GPU": machine.gpu or "none"}


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _short(count: float) -> str:
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"
