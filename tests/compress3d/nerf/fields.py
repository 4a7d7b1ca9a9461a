"""Small fields and a small capture that the tests of this package share."""

from __future__ import annotations

import torch

from compress3d.nerf.field import Field, new_field
from compress3d.nerf.levels import grid_levels
from compress3d.nerf.march import Stride
from compress3d.nerf.occupancy import Occupancy
from compress3d.nerf.rays import Box
from compress3d.nerf.train import Training

BOX = Box((-1.2, -1.2, -1.2), 2.4)

QUICK = Training(
    levels=4,
    features=2,
    log2_table=10,
    lowest_resolution=4,
    highest_resolution=24,
    hidden=16,
    occupancy=16,
    steps_across=64,
    samples=8192,
    watch_every=0.5,
)


def some_field(seed: int = 0, hidden: int = 16, color_layers: int = 1) -> Field:
    """A field whose random weights are large enough to be seen."""
    field = new_field(
        BOX,
        Stride(0.02, longest=0.02),
        grid_levels(4, 10, 4, 24),
        2,
        hidden=hidden,
        color_layers=color_layers,
        occupancy=Occupancy(16),
        seed=seed,
    )
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        field.table.copy_(torch.randn(field.table.shape, generator=random))
        field.density[-1].weight[0] *= 3
    return field
