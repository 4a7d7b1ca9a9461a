"""Which patches are alive at each layer, and a picture of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vit.tokens.reduce import TokenReduction

_SMALLEST = 112
_GAP = 4
_FADED = 0.15


def kept_by_layer(reduction: TokenReduction) -> list[Int64[Tensor, "batch patches"]]:
    """For each layer, what became of each patch of the images of the last forward.

    Returns:
        One (batch, patches) tensor a layer: the patch that stands for it (itself, or what it was merged into), or -1
        where it is gone.

    Raises:
        ValueError: no image went through the model yet, or only with its tokens masked (DynamicViT in training).
    """
    if not reduction.reductions:
        raise ValueError("no patch was dropped or merged in the last forward: run the model in evaluation mode first")
    first = next(iter(reduction.reductions.values()))
    batch, device = first.kept.shape[0], first.kept.device
    patches = first.tokens - reduction.prefix
    whole = torch.arange(patches, device=device).expand(batch, -1)
    found = []
    for layer in range(len(reduction.layers)):
        map_ = reduction.composed(layer)
        if map_ is None:
            found.append(whole)
            continue
        owners = map_.owners[:, reduction.prefix :]
        holders = map_.kept.gather(1, owners.clamp_min(0)) - reduction.prefix
        found.append(torch.where(owners >= 0, holders, -1))
    return found


def draw_kept(
    image: NDArray[np.uint8], layers: Sequence[Int64[Tensor, " patches"]], grid: tuple[int, int]
) -> Image.Image:
    """A strip: the image, and what each layer sees of it, layers that see the same as the one before left out.

    Patches that are gone fade to grey; those that were merged have the mean colour of all that are in the same token,
    and no lines between them where they touch.

    Args:
        image: (height, width, 3) of the whole image.
        layers: of one image, as `kept_by_layer` gives them.
        grid: rows and columns of patches.

    Raises:
        ValueError: the grid does not divide the image, or is not that of the patches.
    """
    rows, columns = grid
    height, width = image.shape[:2]
    if height % rows or width % columns:
        raise ValueError(f"an image of {height}x{width} is not divided by {rows}x{columns} patches")
    scale = max(1, -(-_SMALLEST // min(height, width)))
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    panels = [large]
    before: NDArray[np.int64] = np.arange(rows * columns)
    for layer in layers:
        holders = layer.cpu().numpy()
        if holders.shape != (rows * columns,):
            raise ValueError(f"a grid of {rows}x{columns} has {rows * columns} patches, got {holders.shape}")
        if not np.array_equal(holders, before):
            panels.append(_panel(large, holders.reshape(grid)))
        before = holders
    strip = np.full((large.shape[0], len(panels) * (large.shape[1] + _GAP) - _GAP, 3), 255, np.uint8)
    for index, panel in enumerate(panels):
        start = index * (large.shape[1] + _GAP)
        strip[:, start : start + large.shape[1]] = panel
    return Image.fromarray(strip)


def _panel(image: NDArray[np.uint8], holders: NDArray[np.int64]) -> NDArray[np.uint8]:
    rows, columns = holders.shape
    step = (image.shape[0] // rows, image.shape[1] // columns)
    spread = np.kron(holders, np.ones(step, np.int64))
    shown = image.astype(np.float64)
    grey = shown.mean(axis=2, keepdims=True)
    shown = np.where(spread[..., None] < 0, _FADED * grey + (1 - _FADED) * 235, shown)
    for holder, members in zip(*np.unique(holders, return_counts=True), strict=True):
        if holder >= 0 and members > 1:
            inside = spread == holder
            shown[inside] = image[inside].mean(axis=0)
    _draw_edges(shown, spread, step)
    return shown.round().clip(0, 255).astype(np.uint8)


def _draw_edges(shown: NDArray[np.float64], spread: NDArray[np.int64], step: tuple[int, int]) -> None:
    """A line where two patches meet that are not of the same token, one of which is there."""
    for axis in (0, 1):
        whole = np.moveaxis(spread, axis, 0)
        target = np.moveaxis(shown, axis, 0)
        lines = np.arange(step[axis], len(whole), step[axis])
        edge = whole[lines] != whole[lines - 1]
        target[lines] = np.where(edge[..., None], 0.5 * target[lines] + 64, target[lines])
