"""Harder images from easy ones: canvases of several things among clutter, one of them marked, each pixel with a class.

The things are Fashion-MNIST's or scikit-learn's digits. A canvas is a grid of cells; some hold a thing, scaled and
shifted within its cell, so that none hides another. Fragments of other things and noise lie behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from secateur.datasets import Labelled
from secateur.training import generator_at
from vit.data import LabelledImages

BACKGROUND = "background"

_CHUNK = 256
"""Canvases that are drawn together: the first of many are those of few."""

_OPAQUE = 0.1
"""Pixels of a thing that are darker let through what lies behind."""


@dataclass(frozen=True)
class Layout:
    """How canvases are composed.

    Args:
        cell: height and width of a cell in pixels.
        grid: cells along each side.
        smallest: size of a thing as a share of its cell, at least.
        largest: and at most; a pixel on each side stays free.
        fewest: things on a canvas, at least.
        most: and at most.
        fragments: pieces of other things on a canvas.
        noise: standard deviation of Gaussian noise on all pixels, of white.
        marker: what is drawn around the marked thing, or at its upper left corner.

    Raises:
        ValueError: an option is out of range.
    """

    cell: int = 28
    grid: int = 2
    smallest: float = 0.6
    largest: float = 0.9
    fewest: int = 2
    most: int = 4
    fragments: int = 6
    noise: float = 0.05
    marker: Literal["frame", "dot"] = "frame"

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most <= self.grid**2:
            raise ValueError(
                f"1 <= fewest <= most <= {self.grid**2} cells are needed, got {self.fewest} and {self.most}"
            )
        if not (0 < self.smallest <= self.largest <= 1 and self.cell >= 6):
            raise ValueError(
                f"0 < smallest <= largest <= 1 and cells of 6 pixels or more are needed, got {self.smallest}, "
                f"{self.largest} and {self.cell}"
            )
        if self.fragments < 0 or self.noise < 0:
            raise ValueError(f"fragments and noise must be at least 0, got {self.fragments} and {self.noise}")

    @property
    def size(self) -> int:
        """Height and width of a canvas in pixels."""
        return self.cell * self.grid


FASHION = Layout()
"""56x56 pixels."""

DIGITS = Layout(cell=12, smallest=0.7, largest=0.85, fragments=3)
"""24x24 pixels."""


@dataclass(frozen=True, eq=False)
class Canvases:
    """What was composed.

    Args:
        images: (N, 1, S, S) uint8.
        marked: (N,) class of the marked thing.
        maps: (N, S, S) 0: background; class + 1 where a thing is.
    """

    images: UInt8[Tensor, "N 1 S S"]
    marked: Int64[Tensor, " N"]
    maps: Int64[Tensor, "N S S"]


def marked_things(things: Labelled, count: int, layout: Layout = FASHION, seed: int = 0) -> LabelledImages:
    """Canvases whose label is the class of the marked thing.

    Args:
        things: what lies on them.
        count: how many canvases.
        layout: how they are composed.
        seed: the same gives the same canvases.

    Raises:
        ValueError: there are no things.
    """
    made = compose(things, count, layout, seed, mark=True)
    return LabelledImages(made.images, made.marked, things.classes)


def things_everywhere(things: Labelled, count: int, layout: Layout = FASHION, seed: int = 0) -> LabelledImages:
    """Canvases with a map of classes each, the background's first; nothing is marked.

    Args and raises: as for `marked_things`.
    """
    made = compose(things, count, layout, seed, mark=False)
    return LabelledImages(made.images, made.maps, (BACKGROUND, *things.classes))


def patch_labels(maps: Int64[Tensor, "N H W"], patch_size: int) -> Int64[Tensor, "N h w"]:
    """The most common class in each patch; the lower one of two that are as common.

    Raises:
        ValueError: `patch_size` does not divide the map's size.
    """
    height, width = maps.shape[-2:]
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not divide maps of {height}x{width}")
    counts = functional.one_hot(maps, int(maps.max()) + 1)
    counts = counts.unflatten(2, (-1, patch_size)).unflatten(1, (-1, patch_size)).sum((2, 4))
    return counts.argmax(-1)


def compose(things: Labelled, count: int, layout: Layout, seed: int, mark: bool) -> Canvases:
    """`count` canvases; those of a smaller count are the first of a larger one's.

    Args:
        things: what lies on them.
        count: how many.
        layout: how.
        seed: of everything that is drawn.
        mark: draw the marker.

    Raises:
        ValueError: there are no things, or `count` is below 1.
    """
    if count < 1 or not len(things):
        raise ValueError(f"canvases need things, and a count of at least 1: got {len(things)} things, count {count}")
    parts = [_chunk(things, layout, mark, generator_at(seed, start)) for start in range(0, count, _CHUNK)]
    images, marked, maps = (torch.cat(column)[:count] for column in zip(*parts, strict=True))
    return Canvases(images, marked, maps)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Squares on canvases: left and top edge, and size, (n,) each, in whole pixels."""

    left: Float[Tensor, " n"]
    top: Float[Tensor, " n"]
    size: Float[Tensor, " n"]

    def inside(self, side: int, border: int = 0) -> Bool[Tensor, "n 1 S S"]:
        """Pixels of squares that are larger by `border` on each side."""
        at = torch.arange(side)[None]
        columns, rows = (
            (at >= edge[:, None] - border) & (at < (edge + self.size)[:, None] + border)
            for edge in (self.left, self.top)
        )
        return (rows[:, :, None] & columns[:, None, :])[:, None]


def _chunk(things: Labelled, layout: Layout, mark: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    canvas = _clutter(things, layout, generator)
    maps = torch.zeros(canvas.shape, dtype=torch.int64)
    amount = torch.randint(layout.fewest, layout.most + 1, (_CHUNK,), generator=generator)
    cells = torch.rand(_CHUNK, layout.grid**2, generator=generator).argsort(1)
    marked, marks = torch.zeros(_CHUNK, dtype=torch.int64), torch.zeros(canvas.shape, dtype=torch.bool)
    for slot in range(layout.most):
        chosen = torch.randint(len(things), (_CHUNK,), generator=generator)
        boxes = _boxes(layout, cells[:, slot], generator)
        drawn = _placed(_pixels(things, chosen), boxes, layout.size)
        opaque = (drawn > _OPAQUE) & (slot < amount)[:, None, None, None]
        canvas = torch.where(opaque, drawn, canvas)
        maps = torch.where(opaque, things.labels[chosen][:, None, None, None] + 1, maps)
        if slot == 0:
            marked, marks = things.labels[chosen], _marks(boxes, layout)
    canvas = canvas + layout.noise * torch.randn(canvas.shape, generator=generator)
    if mark:
        canvas = canvas.masked_fill(marks, 1.0)
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8), marked, maps[:, 0]


def _boxes(layout: Layout, cells: Int64[Tensor, " n"], generator: torch.Generator) -> _Boxes:
    """A square in each cell, a pixel from its edges at least."""
    room = layout.cell - 2
    sizes = (layout.smallest, layout.largest)
    smallest, largest = (min(room, max(1, round(share * layout.cell))) for share in sizes)
    size = torch.randint(smallest, largest + 1, (len(cells),), generator=generator)
    shift = (torch.rand(2, len(cells), generator=generator) * (room - size + 1)).floor() + 1
    corner = torch.stack([cells % layout.grid, cells // layout.grid]) * layout.cell + shift
    return _Boxes(corner[0], corner[1], size.float())


def _clutter(things: Labelled, layout: Layout, generator: torch.Generator) -> Float[Tensor, "n 1 S S"]:
    """Dim square pieces of things on black, anywhere."""
    canvas = torch.zeros(_CHUNK, 1, layout.size, layout.size)
    largest = max(2, layout.cell // 3)
    for _ in range(layout.fragments):
        chosen = torch.randint(len(things), (_CHUNK,), generator=generator)
        size = torch.randint(max(2, largest // 2), largest + 1, (_CHUNK,), generator=generator).float()
        left, top = (torch.rand(2, _CHUNK, generator=generator) * (layout.size - size)).floor()
        reach = (torch.rand(2, _CHUNK, generator=generator) * (layout.cell - size)).floor()
        whole = _Boxes(left - reach[0], top - reach[1], torch.full((_CHUNK,), float(layout.cell)))
        brightness = 0.3 + 0.5 * torch.rand(_CHUNK, 1, 1, 1, generator=generator)
        piece = brightness * _placed(_pixels(things, chosen), whole, layout.size)
        canvas = torch.where(_Boxes(left, top, size).inside(layout.size), torch.maximum(canvas, piece), canvas)
    return canvas


def _marks(boxes: _Boxes, layout: Layout) -> Bool[Tensor, "n 1 S S"]:
    if layout.marker == "frame":
        return boxes.inside(layout.size, border=1) & ~boxes.inside(layout.size)
    corner = _Boxes(boxes.left, boxes.top, torch.ones_like(boxes.size))
    return corner.inside(layout.size, border=1)


def _placed(images: Float[Tensor, "n 1 h w"], boxes: _Boxes, side: int) -> Float[Tensor, "n 1 S S"]:
    """Each image scaled into its square, and black around it."""
    scale, zero = side / boxes.size, torch.zeros_like(boxes.size)
    moves = [(side - 2 * edge) / boxes.size - 1 for edge in (boxes.left, boxes.top)]
    theta = torch.stack([scale, zero, moves[0], zero, scale, moves[1]], dim=1).view(-1, 2, 3)
    places = functional.affine_grid(theta, [len(images), 1, side, side], align_corners=False)
    return functional.grid_sample(images, places, align_corners=False)


def _pixels(things: Labelled, chosen: Int64[Tensor, " n"]) -> Float[Tensor, "n 1 h w"]:
    return things.images[chosen][:, None].float() / 255
