"""Pictures of a field, and the samples of rays that can be seen at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures.capture import WHITE, Colour
from compress3d.nerf.compositing import LARGEST_DEPTH, Pixels, composite, composite_reference, optical_depths
from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid_kernels import FAST_MATH
from compress3d.nerf.march import Samples, entry, march, packed_by_ray
from compress3d.nerf.rays import Box, Rays, rays_of
from compress3d.splats.views import UP, Vector, look_at

FIRST_ROUND, LAST_ROUND = 8, 64
"""Samples of a ray that are looked at before it is known whether light is left; twice as many each time."""

_RAYS = 1 << 14
_ORBIT, _ELEVATION = 1.7, math.radians(15.0)


class Picture(NamedTuple):
    """One view: colours (H, W, 3) in front of the background, opacities (H, W), and depths (H, W).

    Depths are distances from the camera along the ray in world units, as the weights have them on average; 0 where
    nothing is seen.
    """

    image: Float[Tensor, "H W 3"]
    opacities: Float[Tensor, "H W"]
    depths: Float[Tensor, "H W"]


@torch.no_grad()
def visible_samples(field: Field, rays: Rays, shift: Float[Tensor, " R"] | float = 0.5) -> Samples:
    """The samples of R rays that some light still reaches, on the field's device.

    Rays look ahead in rounds: most end at the first surface, and what is behind it costs nothing.
    """
    rays, shift = rays.to(field.device), shift.to(field.device) if isinstance(shift, Tensor) else shift
    on_cpu = field.device.type == "cpu"
    distances = entry(rays, field.stride, shift)
    passed = torch.zeros(len(rays), device=field.device)
    alive = torch.isfinite(distances).nonzero()[:, 0]
    rounds: list[tuple[Tensor, Samples, Tensor]] = []
    ahead = FIRST_ROUND
    while len(alive):
        samples, onward = march(rays[alive], field.occupancy, field.stride, distances[alive], ahead)
        densities = field.densities(field.features(samples.positions))
        lit = (_lit if on_cpu else _lit_reference)(densities, samples, alive, passed)
        rounds.append((alive, samples, lit))
        distances[alive] = onward
        alive = alive[torch.isfinite(onward) & (passed[alive] < LARGEST_DEPTH)]
        ahead = min(2 * ahead, LAST_ROUND)
    return (_joined if on_cpu else _joined_reference)(rounds, passed)


def _lit(
    densities: Float[Tensor, " N"], samples: Samples, rays: Int64[Tensor, " A"], passed: Float[Tensor, " R"]
) -> Int64[Tensor, " A"]:
    """How many samples of each of A rays light reaches: the first ones. Their optical depths are added to `passed`."""
    lit = torch.zeros(len(rays), dtype=torch.int64)
    _light(
        densities.numpy(), samples.starts.numpy(), samples.lengths.numpy(), np.float32(LARGEST_DEPTH), rays.numpy(),
        passed.numpy(), lit.numpy(),
    )  # fmt: skip
    return lit


def _lit_reference(
    densities: Float[Tensor, " N"], samples: Samples, rays: Int64[Tensor, " A"], passed: Float[Tensor, " R"]
) -> Int64[Tensor, " A"]:
    """`_lit` in plain torch, on any device."""
    if not len(samples):
        return samples.counts
    before, depths = optical_depths(densities, samples.starts, samples.lengths)
    of_ray = samples.rays
    reached = before + passed[rays][of_ray] < LARGEST_DEPTH
    total = torch.zeros(len(rays), dtype=depths.dtype, device=depths.device)
    passed[rays] += total.index_add_(0, of_ray, depths * reached).to(passed)
    return torch.zeros_like(rays).index_add_(0, of_ray, reached.long())


def _joined_reference(rounds: list[tuple[Tensor, Samples, Tensor]], passed: Float[Tensor, " R"]) -> Samples:
    """`_joined` in plain torch, on any device."""
    parts = []
    for rays, some, lit in rounds:
        of_ray = some.rays
        chosen = torch.arange(len(some), device=of_ray.device) - some.starts[of_ray] < lit[of_ray]
        parts.append((rays[of_ray[chosen]], some.distances[chosen], some.lengths[chosen], some.positions[chosen]))
    return packed_by_ray(parts, len(passed), passed)


def _joined(rounds: list[tuple[Tensor, Samples, Tensor]], passed: Float[Tensor, " R"]) -> Samples:
    """The lit samples of all rounds, ray by ray."""
    starts = torch.zeros(len(passed) + 1, dtype=torch.int64)
    for rays, _, lit in rounds:
        starts[1:][rays] += lit
    starts = starts.cumsum(0)
    total = int(starts[-1])
    joined = Samples(starts, torch.empty(total), torch.empty(total), torch.empty(total, 3))
    ends = starts[:-1].clone()
    to = (joined.distances.numpy(), joined.lengths.numpy(), joined.positions.numpy())
    for rays, some, lit in rounds:
        given = (some.distances.numpy(), some.lengths.numpy(), some.positions.numpy())
        _copy(rays.numpy(), some.starts.numpy(), lit.numpy(), *given, ends.numpy(), *to)
    return joined


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy")
def _light(densities, starts, lengths, most, rays, depths, lit):  # pragma: no cover - compiled
    """Add to the optical depths of the rays, and count the samples that light reaches: the first of each ray."""
    for r in range(len(rays)):
        depth = depths[rays[r]]
        for n in range(starts[r], starts[r + 1]):
            if depth >= most:
                break
            lit[r] += 1
            depth += densities[n] * lengths[n]
        depths[rays[r]] = depth


@nb.njit(cache=True)
def _copy(
    rays, starts, lit, distances, lengths, positions, ends, to_distances, to_lengths, to_positions
):  # pragma: no cover - compiled
    for r in range(len(rays)):
        to, n = ends[rays[r]], starts[r]
        for k in range(lit[r]):
            to_distances[to + k], to_lengths[to + k] = distances[n + k], lengths[n + k]
            for axis in range(3):
                to_positions[to + k, axis] = positions[n + k, axis]
        ends[rays[r]] = to + lit[r]


def trace(field: Field, rays: Rays, shift: Float[Tensor, " R"] | float = 0.5) -> tuple[Pixels, int]:
    """What R rays see, differentiable in the field, and how many samples that took; depths in sides of the box."""
    rays = rays.to(field.device)
    samples = visible_samples(field, rays, shift)
    densities, colors = field.shade(field.features(samples.positions), rays.directions, samples.rays)
    blend = composite_reference if field.plain else composite
    return blend(densities, colors, samples.starts, samples.lengths, samples.distances), len(samples)


@torch.no_grad()
def render_rays(field: Field, rays: Rays) -> Pixels:
    """What R rays see; depths in sides of the box."""
    return trace(field, rays)[0]


def render(field: Field, cameras: Cameras, view: int, background: Colour = WHITE) -> Picture:
    """One view of a field, on its device; memory goes with the pixels."""
    rays = rays_of(cameras, view, field.box).to(field.device)
    parts = [render_rays(field, rays[start : start + _RAYS]) for start in range(0, len(rays), _RAYS)]
    pixels = Pixels(*(torch.cat(one) for one in zip(*parts, strict=True)))
    shape = (cameras.height, cameras.width)
    depths = pixels.depths / pixels.opacities.clamp_min(1e-6) * field.box.side
    behind = torch.tensor(background, device=field.device)
    return Picture(pixels.over(behind).reshape(*shape, 3), pixels.opacities.reshape(shape), depths.reshape(shape))


def render_each(field: Field, cameras: Cameras, background: Colour = WHITE) -> Iterator[Picture]:
    """A picture a camera."""
    for view in range(len(cameras)):
        yield render(field, cameras, view, background)


def orbit_of(box: Box, count: int, width: int, height: int, up: Vector = UP) -> Cameras:
    """One turn around a box, 15 degrees above its middle, that shows all of it.

    Args:
        box: what to look at.
        count: number of cameras, evenly spaced.
        width: of the images in pixels.
        height: of the images in pixels.
        up: world direction that is up in the images.

    Raises:
        ValueError: count is less than one.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    axis = np.array(up) / np.linalg.norm(up)
    side = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side = side / np.linalg.norm(side)
    turns = np.arange(count)[:, None] * (2 * np.pi / count)
    around = np.cos(turns) * side + np.sin(turns) * np.cross(axis, side)
    centre = np.array(box.low) + box.side / 2
    positions = centre + _ORBIT * box.side * (np.cos(_ELEVATION) * around + np.sin(_ELEVATION) * axis)
    focal = min(width, height) * _ORBIT / 1.2
    K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)
    viewmats = look_at(positions, np.broadcast_to(centre, (count, 3)), up)
    return Cameras(viewmats, K.expand(count, 3, 3), width, height)
