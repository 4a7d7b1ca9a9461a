"""Photographs through a lens with distortion -> photographs through a pinhole."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures.lens import Lens

ZOOMS = (0.5, 2.0)
"""How far the middle of the image may be shrunk to keep what the lens saw, and grown to be rid of black borders."""

_GRID = 65
_TOLERANCE = 1e-6


@lru_cache(maxsize=512)
def pinhole_of(lens: Lens) -> Lens:
    """The widest pinhole of the same image size, pixel aspect and middle whose every pixel the lens saw.

    It is the distorted lens's K, zoomed about the middle of the image. A zoom shows part of what any smaller zoom
    shows, so the smallest without black borders is found by bisection in `ZOOMS`. (OpenCV's
    `getOptimalNewCameraMatrix` with alpha = 0 does the same for each axis on its own.)

    Raises:
        ValueError: the distortion folds the image over, or leaves black borders at the largest zoom.
    """
    if lens.is_pinhole:
        return lens
    low, high = ZOOMS
    if not _is_seen(lens, high):
        raise ValueError(f"the distortion cannot be undone: at a zoom of {high:g}, parts of the image are still unseen")
    if _is_seen(lens, low):
        return lens.zoomed(low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _is_seen(lens, middle) else (middle, high)
    return lens.zoomed(high)


class Undistorter:
    """Undistorts photographs; it remembers the last lens, since a camera's photographs share where pixels come from."""

    def __init__(self) -> None:
        self._lens: Lens | None = None
        self._grid = torch.empty(0)

    def __call__(self, image: Float[Tensor, "H W D"], lens: Lens) -> Float[Tensor, "H W D"]:
        """What `pinhole_of(lens)` would have shown, bilinearly; without distortion, `image` itself.

        Raises:
            ValueError: as `pinhole_of` does, or the image is of another size than the lens.
        """
        height, width = image.shape[:2]
        if (width, height) != (lens.width, lens.height):
            raise ValueError(f"the lens is for {lens.width}x{lens.height} pixels, the image has {width}x{height}")
        if lens.is_pinhole:
            return image
        if lens != self._lens:
            self._lens, self._grid = lens, _sampling_grid(lens)
        shown = torch.nn.functional.grid_sample(
            image.movedim(2, 0)[None], self._grid[None], padding_mode="border", align_corners=False
        )
        return shown[0].movedim(0, 2)


def _sampling_grid(lens: Lens) -> Float[Tensor, "H W 2"]:
    """Where each pixel of the pinhole lies in the photograph, -1 to 1 from edge to edge."""
    pixels = _pixels(torch.arange(lens.width) + 0.5, torch.arange(lens.height) + 0.5)
    seen = lens.project(pinhole_of(lens).normalized(pixels))
    return (seen * (2 / seen.new_tensor([lens.width, lens.height])) - 1).float()


def _is_seen(lens: Lens, zoom: float) -> bool:
    """Whether the zoomed pinhole's pixels lie on pixels of the photograph, none folded over."""
    columns = torch.linspace(0.5, lens.width - 0.5, _GRID)
    rows = torch.linspace(0.5, lens.height - 0.5, _GRID)
    seen = lens.project(lens.zoomed(zoom).normalized(_pixels(columns, rows)))
    highest = seen.new_tensor([lens.width, lens.height]) - 0.5 + _TOLERANCE
    inside = bool(((seen >= 0.5 - _TOLERANCE) & (seen <= highest)).all())
    if lens.width == 1 or lens.height == 1:
        return inside
    right, down = seen[:-1, 1:] - seen[:-1, :-1], seen[1:, :-1] - seen[:-1, :-1]
    upright = right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0] > 0
    return inside and bool(upright.all())


def _pixels(columns: Tensor, rows: Tensor) -> Float[Tensor, "H W 2"]:
    y, x = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    return torch.stack([x, y], dim=-1)
