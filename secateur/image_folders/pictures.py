"""Pictures of folders for a page: single images in a box of one size, and sheets of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Pictures

from secateur.image_folders.decoding import as_rgb, read_image
from secateur.image_folders.listing import ImageFolder
from secateur.image_folders.results import FolderResult
from secateur.report.page import Image

LONGEST, SHORTEST = 800, 320
"""Pixels of the longer side of a picture: larger ones are reduced, smaller ones enlarged by whole numbers."""

_COLUMNS, _ROWS, _CELL, _GAP = 8, 2, 96, 4
_BACKGROUND = 255


def read_picture(path: Path) -> Image:
    """An image in 8 bits, RGB."""
    pixels = as_rgb(read_image(path)).permute(1, 2, 0).numpy()
    return np.asarray(pixels * 255 + 0.5, np.uint8)


def fitted(image: Image, box: tuple[int, int]) -> Image:
    """The image in a box, white around it, at a scale at which the box is of a size to look at.

    Args:
        image: (H, W, 3).
        box: height and width of it; an image that is larger is reduced.
    """
    longer = max(box)
    scale = LONGEST / longer if longer > LONGEST else float(max(1, SHORTEST // longer))
    height, width = (max(1, round(side * scale)) for side in box)
    own = min(scale, height / image.shape[0], width / image.shape[1])
    sheet = np.full((height, width, 3), _BACKGROUND, np.uint8)
    _put(sheet, _scaled(image, own))
    return sheet


def sample_sheet(reference: ImageFolder, result: FolderResult) -> Image:
    """Samples of the reference in upper rows, of the candidate in lower ones: of the same names if they pair."""
    count = _COLUMNS * _ROWS
    pairs = result.pairs
    if pairs is not None and pairs.names:
        places = _spread(len(pairs.names), count)
        above = [reference.path / pairs.names[place] for place in places]
        below = [result.folder.path / pairs.candidates[place] for place in places]
    else:
        above = [reference.file(reference.images[place]) for place in _spread(len(reference), count)]
        below = [result.folder.file(result.folder.images[place]) for place in _spread(len(result.folder), count)]
    parts = [_sheet(files) for files in (above, below)]
    width = max(part.shape[1] for part in parts)
    gap = np.full((4 * _GAP, width, 3), _BACKGROUND, np.uint8)
    padded = [np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=_BACKGROUND) for part in parts]
    return np.concatenate([padded[0], gap, padded[1]])


def _sheet(files: list[Path]) -> Image:
    columns = min(_COLUMNS, len(files))
    rows = -(-len(files) // columns)
    step = _CELL + _GAP
    sheet = np.full((rows * step - _GAP, columns * step - _GAP, 3), _BACKGROUND, np.uint8)
    for index, file in enumerate(files):
        top, left = index // columns * step, index % columns * step
        image = read_picture(file)
        scale = _CELL / max(image.shape[:2])
        _put(sheet[top : top + _CELL, left : left + _CELL], _scaled(image, int(scale) if scale >= 1 else scale))
    return sheet


def _scaled(image: Image, scale: float) -> Image:
    """Reduced smoothly, or enlarged so that each pixel is a square."""
    if scale == 1:
        return image
    height, width = (max(1, int(side * scale)) for side in image.shape[:2])
    how = Pictures.Resampling.NEAREST if scale > 1 else Pictures.Resampling.LANCZOS
    return np.asarray(Pictures.fromarray(image).resize((width, height), how))


def _put(sheet: Image, image: Image) -> None:
    """Draw an image into the middle of a sheet."""
    top, left = ((sheet.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
    sheet[top : top + image.shape[0], left : left + image.shape[1]] = image


def _spread(total: int, count: int) -> list[int]:
    """At most `count` places of `total`, evenly spread."""
    return [int(place) for place in np.unique(np.linspace(0, total - 1, min(count, total)).round())]
