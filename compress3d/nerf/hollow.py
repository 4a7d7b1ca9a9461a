"""A field that learns where it is hollow: a coarse grid of saliencies multiplies the features.

HollowNeRF (Xie et al., arXiv 2308.10122): the saliency of a point is p = sigmoid(trilinear(G)), the networks read v = p
f of its features f, and a soft zero-skipping gate tanh(alpha |v|) makes v = 0 empty. Rows of the tables that hollow and
visible points share are then moved by the visible ones alone: that is the mitigation of collisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid import encode, encode_reference
from compress3d.nerf.levels import Level
from compress3d.nerf.occupancy import Occupancy, pack_bits
from compress3d.nerf.units import VOXELS, slots_of, voxel_groups
from secateur.units import Keep, UnitGroup

ALPHA = 1e4
"""Steepness of the gate; the publication raises it tenfold at the end, where the gate here goes altogether."""

RESOLUTIONS = (4, 256)

_SHARPNESS = 10.0
_MIDDLE, _START = 4.0, 4.2
"""Entries of the grid where the saliency is a half, and in the beginning; at 0 it is 4e-18."""


class HollowField(Field):
    """A field under a saliency grid, for training; `hollowed` makes it a plain one.

    The grid's vertices are one more group of units, "voxels": around those that are masked or cut the field is empty.

    Args:
        field: whose parts it takes over, not copies.
        resolution: vertices a side of the grid, T; the publication has 64.

    Raises:
        ValueError: the resolution is out of range.
    """

    voxels: Int32[Tensor, " vertices"] | None

    def __init__(self, field: Field, resolution: int = 64) -> None:
        low, high = RESOLUTIONS
        if not low <= resolution <= high:
            raise ValueError(f"resolution must be {low} to {high}, got {resolution}")
        density, color = field.weights()
        super().__init__(
            field.box, field.stride, field.levels, field.table, density, color, field.occupancy, field.slots
        )
        self.grid = (Level(float(resolution - 2), resolution**3, False),)
        # Steps of Adam are as long as the rate: logits that are to cross from 1 to 0 soon are ten times their entries.
        self.saliency = nn.Parameter(torch.full((resolution**3, 1), _START, device=field.device))
        self.register_buffer("voxels", None)

    def groups(self) -> Sequence[UnitGroup]:
        """Those of the field, and the voxels."""
        return (*super().groups(), *voxel_groups(self))

    def cut(self, keep: Keep) -> HollowField:
        """A smaller field under a grid of fewer vertices; see `Field.cut`."""
        smaller = cast(HollowField, super().cut(keep))
        present = self.present()
        present[present.clone()] = keep.get(VOXELS, torch.zeros(0, dtype=torch.bool)).to(self.device)
        smaller.voxels = slots_of(present, self.device)
        return smaller

    def present(self) -> Bool[Tensor, " vertices"]:
        """Which vertices are left."""
        if self.voxels is None:
            return torch.ones(self.grid[0].rows, dtype=torch.bool, device=self.device)
        return self.voxels >= 0

    def vertex_saliencies(self) -> Float[Tensor, " left"]:
        """p at the vertices that are left, 0 to 1, in order; vertex x + T (y + T z)."""
        return torch.sigmoid(_SHARPNESS * (self.saliency[:, 0] - _MIDDLE))

    def saliencies(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 1"]:
        """p at positions in the unit cube."""
        run = encode_reference if self.plain else encode
        return torch.sigmoid(_SHARPNESS * (run(positions, self.saliency, self.grid, self.voxels) - _MIDDLE))

    def features(self, positions: Float[Tensor, "N 3"]) -> Float[Tensor, "N LF"]:
        """Of positions in the unit cube, multiplied by the saliencies there."""
        return self.saliencies(positions) * super().features(positions)

    def shade(
        self, features: Float[Tensor, "N LF"], directions: Float[Tensor, "R 3"], rays: Int64[Tensor, " N"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Densities, gated, and colours; see `Field.shade`."""
        densities, colors = super().shade(features, directions, rays)
        return densities * gate(features), colors

    def densities(self, features: Float[Tensor, "N LF"]) -> Float[Tensor, " N"]:
        """Only the densities, without a gradient."""
        return super().densities(features) * gate(features)


def gate(features: Float[Tensor, "N LF"]) -> Float[Tensor, " N"]:
    """tanh(alpha |v|), without a gradient: 0 where the features are all 0, else nearly 1 (arXiv 2308.10122).

    Where it is not flat its slope is alpha, which for long would drown all others in Adam's mean squares.
    """
    return torch.tanh(ALPHA * features.detach().norm(dim=1))


@torch.no_grad()
def visible_cells(field: HollowField, salient: Bool[Tensor, " vertices"]) -> Bool[Tensor, " cells"]:
    """Which cells of the occupancy grid have a salient vertex around their middle."""
    side = field.occupancy.resolution
    along = (torch.arange(side, device=field.device) + 0.5) / side
    z, y, x = torch.meshgrid(along, along, along, indexing="ij")
    middles = torch.stack([x, y, z], dim=3).reshape(-1, 3)
    return torch.cat([encode(part, salient.float()[:, None], field.grid)[:, 0] for part in middles.split(1 << 18)]) > 0


@torch.no_grad()
def hollowed(field: HollowField, salient: Bool[Tensor, " vertices"]) -> Field:
    """A plain field that is empty but for what is around salient vertices, where the saliency becomes 1.

    Args:
        field: left as it is.
        salient: (T^3,) vertices whose saliency is not 0 for good.

    Raises:
        ValueError: `salient` has another shape.
    """
    vertices = field.grid[0].rows
    if salient.shape != (vertices,) or salient.dtype != torch.bool:
        raise ValueError(f"salient must be bool ({vertices},), got {salient.dtype} {tuple(salient.shape)}")
    visible = pack_bits(visible_cells(field, salient & field.present()))
    occupancy = Occupancy(field.occupancy.resolution).to(field.device)
    for name in ("possible", "bits"):
        cast(Tensor, getattr(occupancy, name)).copy_(cast(Tensor, getattr(field.occupancy, name)) & visible)
    occupancy.densities.copy_(field.occupancy.densities)
    density, color = ([weight.detach().clone() for weight in weights] for weights in field.weights())
    slots = None if field.slots is None else field.slots.clone()
    table = field.table.detach().clone()
    return Field(field.box, field.stride, field.levels, table, density, color, occupancy, slots)
