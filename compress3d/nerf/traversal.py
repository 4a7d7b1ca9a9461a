"""`march` through nerfacc's traversal of occupancy grids (https://github.com/nerfstudio-project/nerfacc, `grid.cu`).

The library cuts rays into intervals of a step from a near plane on, and keeps those whose middle is in an occupied
cell. With a near plane half a step before a ray's next lattice point the middles are that lattice. Its cone steps
grow from the intervals' near ends and have no longest: those are left to `march_reference`, as is nerfacc before 0.5.3,
which cannot be told how many samples a ray may have.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
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
    return rays.origins.is_cuda and len(rays) > 0 and not stride.cone and _traverse_grids() is not None


@torch.no_grad()
def march_nerfacc(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int = 1 << 14
) -> tuple[Samples, Float[Tensor, " R"]]:
    """`compress3d.nerf.march.march` of one ray or more, with steps of one length.

    A sample that rounding puts on the border of two cells may fall to either.
    """
    traverse = _traverse_grids()
    assert traverse is not None
    cube = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]], device=distances.device)
    _, samples, ends = traverse(
        rays.origins,
        rays.directions,
        occupancy.by_axis[None],
        cube,
        near_planes=distances - stride.step / 2,
        step_size=stride.step,
        cone_angle=0.0,
        traverse_steps_limit=most,
    )
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


def _traverse_grids() -> Callable[..., Any] | None:
    nerfacc = library("nerfacc")
    if nerfacc is None:
        return None
    traverse: Callable[..., Any] = nerfacc.traverse_grids
    return traverse if "traverse_steps_limit" in inspect.signature(traverse).parameters else None
