"""`march` through nerfacc's traversal of occupancy grids (https://github.com/nerfstudio-project/nerfacc, `grid.cu`).

The library cuts rays into intervals of a step from a near plane on, and keeps those whose middle is in an occupied
cell. With a near plane half a step before a ray's next lattice point the middles are that lattice. Its cone steps
grow from the intervals' near ends and have no longest: those are left to `march_reference`, as is nerfacc before 0.5.3,
which cannot be told how many samples a ray may have.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.nerf.libraries import library
from compress3d.nerf.march import Samples, Stride, within
from compress3d.nerf.occupancy import Occupancy
from compress3d.nerf.rays import Rays


def serves(rays: Rays, stride: Stride) -> bool:
    """Whether `march_nerfacc` can be given these: rays on CUDA, and steps of one length."""
    origins = rays.origins
    return origins.is_cuda and len(rays) > 0 and not stride.cone and traversal(origins.device) is not None


@torch.no_grad()
def march_nerfacc(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int = 1 << 14
) -> tuple[Samples, Float[Tensor, " R"]]:
    """`compress3d.nerf.march.march` of one ray or more, with steps of one length.

    A sample that rounding puts on the border of two cells may fall to either.
    """
    traverse = traversal(distances.device)
    assert traverse is not None
    samples, ends = traverse(rays, occupancy.by_axis, distances - stride.step / 2, stride.step, most)
    counts = samples.packed_info[:, 1].long()
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    along = samples.vals
    of_ray = torch.repeat_interleave(counts)
    positions = rays.origins[of_ray] + along[:, None] * rays.directions[of_ray]
    # Where a ray has fewer samples, `ends` may never have been written.
    behind = ends + stride.step / 2
    stays = (counts == most) & within(rays.origins + behind[:, None] * rays.directions, rays.directions)
    onward = torch.where(stays, behind, math.inf)
    return Samples(starts, along, torch.full_like(along, stride.step), positions.clamp(0, 1)), onward


Traverse = Callable[[Rays, Tensor, Tensor, float, int], tuple[Any, Tensor]]
"""Rays, cells by x, y, z, near planes, step and most samples -> the library's samples, and where each ray got to."""


@cache
def traversal(device: torch.device) -> Traverse | None:
    """nerfacc's traversal of the unit cube on `device`; None where there is none that works.

    Its kernels are compiled when they are first called, here: a machine may lack what that takes, of which a warning
    tells.
    """
    nerfacc = library("nerfacc")
    if nerfacc is None or "traverse_steps_limit" not in inspect.signature(nerfacc.traverse_grids).parameters:
        return None
    cube = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], device=device)

    def traverse(rays: Rays, cells: Tensor, near: Tensor, step: float, most: int) -> tuple[Any, Tensor]:
        _, samples, ends = nerfacc.traverse_grids(
            rays.origins,
            rays.directions,
            cells[None],
            cube,
            near_planes=near,
            step_size=step,
            cone_angle=0.0,
            traverse_steps_limit=most,
        )
        return samples, ends

    one = torch.ones(1, device=device)
    try:
        traverse(Rays(one.expand(1, 3) / 2, one.expand(1, 3)), one.bool().expand(8, 8, 8), one, 0.1, 1)
    except Exception as error:  # of a compiler, of CUDA, or of a module that is not there: the library does not say
        warnings.warn(f"nerfacc is installed but does not run, so plain torch stands in for it: {error}", stacklevel=2)
        return None
    return traverse
