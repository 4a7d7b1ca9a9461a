"""Rays through pixels, and the cube of space that a field fills."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.cameras import Cameras


@dataclass(frozen=True, slots=True)
class Box:
    """A cube with sides along the axes of the world; inside of it positions are [0, 1]^3.

    Args:
        low: its lowest corner, in world units.
        side: its length, in world units.

    Raises:
        ValueError: a number is not finite, or the side is not above 0.
    """

    low: tuple[float, float, float]
    side: float

    def __post_init__(self) -> None:
        values = torch.tensor([*self.low, self.side], dtype=torch.float64)
        if len(values) != 4 or not bool(torch.isfinite(values).all()) or not self.side > 0:
            raise ValueError(f"a box needs three finite coordinates and a side above 0, got {self.low} and {self.side}")

    def inward(self, points: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape 3"]:
        """Points of the world as the box counts them."""
        return (points - points.new_tensor(self.low)) / self.side


@dataclass(frozen=True, slots=True, eq=False)
class Rays:
    """R rays in the coordinates of a box.

    Args:
        origins: (R, 3) float32, in sides of the box.
        directions: (R, 3) float32 unit vectors.
    """

    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, index: slice | Tensor) -> Rays:
        return Rays(self.origins[index], self.directions[index])

    def to(self, device: torch.device | str) -> Rays:
        """The same on `device`."""
        return Rays(self.origins.to(device), self.directions.to(device))


def rays_through(
    cameras: Cameras,
    views: Int64[Tensor, " R"],
    rows: Int64[Tensor, " R"],
    columns: Int64[Tensor, " R"],
    box: Box,
) -> Rays:
    """The ray through the centre of each pixel: (view, row, column) one by one."""
    Ks = cameras.Ks[views]
    x = (columns + 0.5 - Ks[:, 0, 2]) / Ks[:, 0, 0]
    y = (rows + 0.5 - Ks[:, 1, 2]) / Ks[:, 1, 1]
    inside = torch.stack([x, y, torch.ones_like(x)], dim=1)
    directions = (cameras.viewmats[views, :3, :3].transpose(1, 2) @ inside[:, :, None])[..., 0]
    directions = directions / directions.norm(dim=1, keepdim=True)
    return Rays(box.inward(cameras.positions[views]).contiguous(), directions.contiguous())


def rays_of(cameras: Cameras, view: int, box: Box) -> Rays:
    """The rays of all pixels of one view, row by row."""
    pixels = torch.arange(cameras.width * cameras.height)
    views = torch.full_like(pixels, view)
    return rays_through(cameras, views, pixels // cameras.width, pixels % cameras.width, box)
