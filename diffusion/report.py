"""The page that shows what pruning a diffusion model did: the same samples before and after, sizes, times, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image as Pictures
from torch import Tensor

from diffusion.evaluate import DENSE, EvaluatedModel, Evaluation
from secateur.files import replacing_file
from secateur.quantities import format_decibels
from secateur.recipe import NAME as RECIPE
from secateur.report.page import Image, Meter, Page, Result, Table, View, errors_between

if TYPE_CHECKING:
    from diffusion.aptp.report import RouterRecord
    from diffusion.aptp.run import ExpertsRecord
    from diffusion.outcome import Pruning

SAMPLES_PICTURE = "samples.png"
"""Name of the picture of `side_by_side` in the folder of a run."""

_SIDE = 640
"""Pixels of a grid's longer side, about."""

_SINGLES = 4

_GAP = 4
"""Pixels between pictures."""


def pruning_page(record: Pruning, pictures: Mapping[str, Float[Tensor, "K C H W"]]) -> Page:
    """The samples of a recipe's run, and what units stay."""
    tables = (_units(record.kinds),) if record.kinds else ()
    return _of_recipe(_page(record.evaluation, pictures, f"{record.model}, pruned", _said(record), tables))


def experts_page(record: ExpertsRecord, pictures: Mapping[str, Float[Tensor, "K C H W"]]) -> Page:
    """The samples of a run that trained experts, and which prompts these have."""
    first, *others = record.routers.values()
    subtitle = (
        f"{_counted(len(first.experts), 'expert')}, which take {first.share:.1%} of the multiply-adds in the mean"
    )
    against = f", against one network of {others[0].share:.1%}." if others else "."
    tables = (*(_experts(name, router) for name, router in record.routers.items()), _routes(record.routes))
    title = f"{record.model}, a network for each prompt"
    return _of_recipe(_page(record.evaluation, pictures, title, subtitle + against, tables))


def evaluation_page(record: Evaluation, pictures: Mapping[str, Float[Tensor, "K C H W"]], name: str) -> Page:
    """The samples of an evaluation against the model `name`."""
    names = ", ".join(one.name for one in record.candidates)
    return _page(record, pictures, name, f"{names} against {name}, on the same seeds.")


def _of_recipe(page: Page) -> Page:
    """With the recipe beside it, and the last candidate shown first."""
    return replace(page, links={"The recipe": RECIPE}, chosen=len(page.results) - 1)


def _page(
    evaluation: Evaluation, pictures: Mapping[str, Tensor], title: str, subtitle: str, tables: tuple[Table, ...] = ()
) -> Page:
    shown = {name: _views(images) for name, images in pictures.items()}
    names = ["all samples", *(f"sample {index + 1}" for index in range(len(shown[DENSE]) - 1))]
    views = tuple(View(name, image) for name, image in zip(names, shown[DENSE], strict=True))
    results = tuple(_result(one, shown) for one in evaluation.candidates)
    return Page(title, subtitle, DENSE, views, results, tables=tables)


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


def _result(one: EvaluatedModel, shown: Mapping[str, Sequence[Image]]) -> Result:
    images = tuple(shown[one.name])
    errors = tuple(errors_between(mine, dense) for mine, dense in zip(images, shown[DENSE], strict=True))
    psnr = () if one.paired is None else one.paired.psnr
    captions = ("all samples on the same seeds", *(format_decibels(value) for value in psnr[: len(images) - 1]))
    captions = (*captions, *[""] * (len(images) - len(captions)))
    return Result(one.name, images=images, errors=errors, captions=captions)


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


def _said(record: Pruning) -> str:
    share = record.plan.pruned.params / record.plan.dense.params
    by = "named modules went" if record.criterion is None else f"units chosen by {record.criterion}"
    trained = "" if record.recovery is None else f", then trained for {record.recovery.steps} steps"
    return f"{share:.1%} of the parameters of the {record.component} are left: {by}{trained}."


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"
