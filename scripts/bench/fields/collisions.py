"""Section `collisions`: what rows that visible and hollow space share cost the visible, by how much is hollow."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from parts import Job
from scipy.ndimage import distance_transform_edt
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid import encode
from compress3d.nerf.levels import grid_levels
from fields.chair import trained_field
from fields.settings import Settings
from secateur.console import Report, stretch
from secateur.training import generator_at

HOW = (
    "Colours and opacity of the chair's trained field at random points of the cube, fitted by a multi-resolution grid"
    " whose levels are summed: linear least squares in the tables by conjugate gradients, so that nothing but the "
    "rows decides. Half of the points are in occupied cells, and want the field's values; the others want 0, as "
    "training on empty space asks for, but for those that are hollow: the farthest from what is visible. Error: mean "
    "square over other visible points, over the mean square of the values there; error_fitted: over the visible "
    "points that were fitted."
)
SIZES = (10, 12, 14)
"""log2 of the tables."""

HOLLOW = (0.0, 0.25, 0.5, 0.75)
"""Shares of the cube; after them all that is not visible."""

FEATURES, ITERATIONS = 4, 60


def jobs(settings: Settings) -> dict[str, Job]:
    """A part for each size of the tables."""
    return {f"2^{size}": partial(_size, settings, size) for size in ((8,) if settings.quick else SIZES)}


def _size(settings: Settings, log2_table: int, report: Report, folder: Path) -> dict[str, Any]:
    field = trained_field(settings, stretch(report, 0.0, 0.5))
    far = _distances(field)
    points, beside = _points(field, far, settings, 0), _points(field, far, settings, 1)
    reach = far[field.occupancy.cells_of(points)]
    visible, held_out = reach == 0, beside[far[field.occupancy.cells_of(beside)] == 0]
    values = _values(field, points, visible)
    wanted = _values(field, held_out, torch.ones(len(held_out), dtype=torch.bool))
    empty = float((far > 0).float().mean())
    shares = [*(share for share in HOLLOW if share < empty), empty]
    rows = []
    for number, share in enumerate(shares):
        report(0.5 + number / 10, f"2^{log2_table}, {share:.0%} hollow")
        stays = visible | (reach <= torch.quantile(far, 1 - share))
        table, levels = _fitted(points[stays], values[stays], log2_table)
        errors = {
            "error": _error(_summed(held_out, table, levels), wanted),
            "error_fitted": _error(_summed(points[visible], table, levels), values[visible]),
        }
        rows.append({"hollow": share, "points": int(stays.sum()), **errors})
    return {"how": HOW, "log2_table": log2_table, "rows": rows}


def _error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean() / wanted.square().mean())


def _points(field: Field, far: Tensor, settings: Settings, step: int) -> Tensor:
    """As many in visible cells as in others, at random."""
    count, side, random = 1000 if settings.quick else 1 << 17, field.occupancy.resolution, generator_at(0, step)
    kinds = [kind.nonzero()[:, 0] for kind in (far == 0, far > 0)]
    cells = torch.cat([kind[torch.randint(len(kind), (count,), generator=random)] for kind in kinds])
    corners = torch.stack([cells % side, cells // side % side, cells // side**2], dim=1)
    return (corners + torch.rand(len(cells), 3, generator=random)) / side


def _distances(field: Field) -> Tensor:
    """Of each cell to the nearest occupied one, in cells."""
    side = field.occupancy.resolution
    empty = ~field.occupancy.occupied().view(side, side, side).numpy()
    return torch.from_numpy(distance_transform_edt(empty)).float().flatten()


@torch.no_grad()
def _values(field: Field, points: Tensor, visible: Tensor) -> Tensor:
    """Colours in front of black, and opacities of a step; 0 where nothing is visible."""
    inside = points[visible]
    ahead = torch.tensor([[0.0, 0.0, 1.0]])
    densities, colors = field.shade(field.features(inside), ahead, torch.zeros(len(inside), dtype=torch.int64))
    opacities = 1 - torch.exp(-densities * field.stride.step)
    values = torch.zeros(len(points), FEATURES)
    values[visible] = torch.cat([colors * opacities[:, None], opacities[:, None]], dim=1)
    return values


def _summed(points: Tensor, table: Tensor, levels: Any) -> Tensor:
    return encode(points, table, levels).view(len(points), len(levels), FEATURES).sum(1)


def _fitted(points: Tensor, values: Tensor, log2_table: int) -> tuple[Tensor, Any]:
    levels = grid_levels(8, log2_table, 16, 256)
    rows = sum(level.rows for level in levels)

    def back(slopes: Tensor) -> NDArray[np.float64]:
        table = torch.zeros(rows, FEATURES, requires_grad=True)
        (gradient,) = torch.autograd.grad(_summed(points, table, levels), table, slopes)
        return gradient.flatten().double().numpy()

    def normal(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        return back(_summed(points, torch.from_numpy(flat).float().view(rows, FEATURES), levels))

    operator = LinearOperator((rows * FEATURES,) * 2, matvec=normal, dtype=np.float64)
    found, _ = cg(operator, back(values), rtol=1e-6, maxiter=ITERATIONS)
    return torch.from_numpy(found).float().view(rows, FEATURES), levels
