"""Where rays look: samples along them, in occupied cells of the unit cube only.

A ray's samples lie on a lattice that starts, by a random share of a step, behind its entry into the cube. Steps are as
long as `step`, or grow with the distance (cone steps: arXiv 2201.05989, appendix E.1). Cells that are empty,
and blocks of 8^3 such cells, are skipped by whole steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from compress3d.nerf.hashgrid_kernels import FAST_MATH
from compress3d.nerf.occupancy import BLOCK, Occupancy
from compress3d.nerf.rays import Rays

_RAYS = 256
"""Rays that a thread takes at a time."""

_RAYS_AT_ONCE, _POINTS_AT_ONCE, _STEPS_AT_ONCE = 1 << 16, 1 << 21, (32, 256)
"""What `march_reference` holds at a time: rays, lattice points of all of them, and points of one, least and most."""

_FARTHEST = 1e9
"""A distance from which no ray comes back to the cube."""


@dataclass(frozen=True, slots=True)
class Stride:
    """How far it is from sample to sample, in sides of the cube.

    Args:
        step: the least, and the first.
        cone: growth with the distance from the ray's origin: a step is `cone` times that distance, within limits.
        longest: the most.

    Raises:
        ValueError: a number is out of range.
    """

    step: float = math.sqrt(3) / 1024
    cone: float = 0.0
    longest: float = math.sqrt(3) / 128

    def __post_init__(self) -> None:
        if not 1e-5 <= self.step <= self.longest <= 1 or not 0 <= self.cone <= 1:
            raise ValueError(
                f"steps must be 1e-05 to 1 and the longest no shorter, cone 0 to 1, got {self.step}, {self.longest} "
                f"and {self.cone}"
            )

    def lengths(self, distances: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Of the steps that begin at these distances from the ray's origin."""
        return (distances * self.cone).clamp(self.step, self.longest)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """N samples of R rays, packed ray by ray.

    Args:
        starts: (R + 1,) int64: ray r has samples starts[r] to starts[r + 1].
        distances: (N,) from the ray's origin, in sides of the cube.
        lengths: (N,) of the steps that the samples stand for.
        positions: (N, 3) in the unit cube.
    """

    starts: Int64[Tensor, " rays"]
    distances: Float[Tensor, " N"]
    lengths: Float[Tensor, " N"]
    positions: Float[Tensor, "N 3"]

    def __len__(self) -> int:
        return len(self.distances)

    @property
    def counts(self) -> Int64[Tensor, " R"]:
        """Samples of each ray."""
        return self.starts.diff()

    @property
    def rays(self) -> Int64[Tensor, " N"]:
        """Of each sample the ray."""
        return torch.repeat_interleave(self.counts)


def entry(rays: Rays, stride: Stride, shift: Float[Tensor, " R"] | float = 0.5) -> Float[Tensor, " R"]:
    """The distance of each ray's first sample, `shift` of a step behind its entry; infinite where it misses the cube.

    A ray that starts inside of the cube enters at its origin.
    """
    near, far = _slab(rays)
    near = near.clamp_min(0)
    first = near + stride.lengths(near) * shift
    return torch.where(far > near, first, math.inf).contiguous()


def march(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int = 1 << 14
) -> tuple[Samples, Float[Tensor, " R"]]:
    """The next samples of rays.

    On the CPU by a numba kernel; elsewhere by nerfacc where that serves (`compress3d.nerf.traversal`), or else by
    `march_reference`.

    Args:
        rays: R of them.
        occupancy: the cells to look into.
        stride: from sample to sample.
        distances: where each ray's lattice goes on, as `entry` or the call before gave it.
        most: samples of a ray.

    Returns:
        the samples, and the distances to go on from: infinite where the ray has left the cube.
    """
    if rays.origins.device.type == "cpu":
        return _march_numba(rays, occupancy, stride, distances, most)
    from compress3d.nerf.traversal import march_nerfacc, serves  # which takes the classes of this file

    walk = march_nerfacc if serves(rays, stride) else march_reference
    return walk(rays, occupancy, stride, distances, most)


def _march_numba(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int
) -> tuple[Samples, Float[Tensor, " R"]]:
    given = (
        rays.origins.numpy(), rays.directions.numpy(), distances.numpy(), occupancy.bits.numpy(),
        occupancy.blocks.numpy(), occupancy.resolution,
        np.float32(stride.step), np.float32(stride.cone), np.float32(stride.longest), most,
    )  # fmt: skip
    starts = torch.zeros(len(rays) + 1, dtype=torch.int64)
    onward = torch.empty(len(rays))
    empty = np.empty((0, 0), np.float32)
    _walk(*given, starts.numpy(), onward.numpy(), empty[0:0].reshape(0), empty[0:0].reshape(0), empty.reshape(0, 3))
    starts = torch.cumsum(starts, 0)
    total = int(starts[-1])
    samples = Samples(starts, torch.empty(total), torch.empty(total), torch.empty(total, 3))
    if total:
        _walk(
            *given, starts.numpy(), onward.numpy(), samples.distances.numpy(), samples.lengths.numpy(),
            samples.positions.numpy(),
        )  # fmt: skip
    return samples, onward


def march_reference(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int = 1 << 14
) -> tuple[Samples, Float[Tensor, " R"]]:
    """`march` in plain torch, on any device: each point of the lattice is made, and those in empty cells are dropped.

    Rays go on by so many points at a time, so that memory has a bound. Distances differ from the kernel's by what
    rounding makes of sums in another order.
    """
    onward = torch.full_like(distances, math.inf)
    parts: list[tuple[Tensor, ...]] = []
    for going in (distances < _FARTHEST).nonzero()[:, 0].split(_RAYS_AT_ONCE):
        at, wanted = distances[going], torch.full_like(going, most)
        while len(going):
            some = rays[going]
            lattice = _lattice(at, stride, len(going))
            positions = some.origins[:, None] + lattice[..., None] * some.directions[:, None]
            inside = within(positions, some.directions[:, None])
            hits = inside[:, :-1] & occupancy.holds(positions[:, :-1].clamp(0, 1))
            found = hits.cumsum(dim=1)
            row, column = (hits & (found <= wanted[:, None])).nonzero(as_tuple=True)
            along = lattice[row, column]
            parts.append((going[row], along, stride.lengths(along), positions[row, column].clamp(0, 1)))
            full = found[:, -1] >= wanted
            # The point behind the last sample that was wanted.
            behind = (found >= wanted[:, None]).int().argmax(dim=1, keepdim=True) + 1
            stays = full & inside.gather(1, behind)[:, 0]
            onward[going[stays]] = lattice.gather(1, behind)[stays, 0]
            more = ~full & inside[:, -1]
            going, at, wanted = going[more], lattice[more, -1], (wanted - found[:, -1])[more]
    return packed_by_ray(parts, len(rays), distances), onward


def _lattice(at: Float[Tensor, " R"], stride: Stride, rays: int) -> Float[Tensor, "R points"]:
    """The next points of rays, the first of them `at`; the last is where to go on."""
    least, most = _STEPS_AT_ONCE
    count = min(max(_POINTS_AT_ONCE // rays, least), most, math.ceil(math.sqrt(3) / stride.step) + 1)
    if not stride.cone:
        return at[:, None] + torch.arange(count + 1, device=at.device) * stride.step
    points = [at]
    for _ in range(count):
        points.append(points[-1] + stride.lengths(points[-1]))
    return torch.stack(points, dim=1)


def within(positions: Float[Tensor, "*shape 3"], directions: Float[Tensor, "*shape 3"]) -> Bool[Tensor, "*shape"]:
    """Whether points of rays are in the unit cube, or before it: rounding may leave the first just outside."""
    low, high = positions < 0, positions > 1
    ahead = (low & (directions > 0)) | (high & (directions < 0))
    return ~(low | high).any(dim=-1) | ahead.any(dim=-1)


def packed_by_ray(parts: Sequence[tuple[Tensor, ...]], count: int, like: Float[Tensor, " N"]) -> Samples:
    """Samples that were found in parts, put together ray by ray: those of an earlier part come first.

    Args:
        parts: (ray, distance, length, position) of the samples of each part, within it in order.
        count: number of rays.
        like: any numbers of the type and on the device of distances.
    """
    if not parts:
        none = like.new_empty(0)
        starts = torch.zeros(count + 1, dtype=torch.int64, device=like.device)
        return Samples(starts, none, none, none.reshape(0, 3))
    ray, distances, lengths, positions = (torch.cat(one) for one in zip(*parts, strict=True))
    order = torch.sort(ray, stable=True).indices
    starts = torch.nn.functional.pad(torch.bincount(ray, minlength=count).cumsum(0), (1, 0))
    return Samples(starts, distances[order], lengths[order], positions[order])


def _slab(rays: Rays) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Where rays enter and leave the unit cube (Kay and Kajiya 1986); the second is smaller where they miss it."""
    inverse = 1 / torch.where(rays.directions.abs() < 1e-12, 1e-12, rays.directions)
    at_low, at_high = -rays.origins * inverse, (1 - rays.origins) * inverse
    return torch.minimum(at_low, at_high).amax(dim=1), torch.maximum(at_low, at_high).amin(dim=1)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy", inline="always")
def _inverse(direction):  # pragma: no cover - compiled
    tiny = np.float32(1e-9)
    return np.float32(1) / (direction if abs(direction) > tiny else tiny)


@nb.njit(cache=True, fastmath=FAST_MATH, error_model="numpy", inline="always")
def _to_exit(x, inverse, cell, size):  # pragma: no cover - compiled
    """How far it is along one axis to where the ray leaves its cell."""
    return (np.float32(cell + (1 if inverse > 0 else 0)) * size - x) * inverse


@nb.njit(parallel=True, cache=True, fastmath=FAST_MATH, error_model="numpy")
def _walk(
    origins, directions, distances, bits, blocks, resolution, step, cone, longest, most, starts, onward, along, lengths,
    positions,
):  # fmt: skip  # pragma: no cover - compiled
    """Walk each ray. While `positions` is empty samples are counted, into starts[r + 1]; then they are filled in."""
    fills = len(positions) > 0
    one, zero, size = np.float32(1), np.float32(0), np.float32(1) / np.float32(resolution)
    cells, across, large = np.float32(resolution), resolution // BLOCK, size * np.float32(BLOCK)
    for block in nb.prange((len(origins) + _RAYS - 1) // _RAYS):
        for r in range(block * _RAYS, min(len(origins), (block + 1) * _RAYS)):
            ox, oy, oz = origins[r, 0], origins[r, 1], origins[r, 2]
            dx, dy, dz = directions[r, 0], directions[r, 1], directions[r, 2]
            ix, iy, iz = _inverse(dx), _inverse(dy), _inverse(dz)
            t, found, begin = distances[r], 0, starts[r]
            onward[r] = np.float32(np.inf)
            if not t < np.float32(1e9):
                continue
            while True:
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                if not (zero <= x <= one and zero <= y <= one and zero <= z <= one):
                    # Rounding may leave the first point just outside; a later one has left for good.
                    ahead = (x < zero and dx > 0) or (x > one and dx < 0) or (y < zero and dy > 0)
                    ahead = ahead or (y > one and dy < 0) or (z < zero and dz > 0) or (z > one and dz < 0)
                    if not ahead:
                        break
                if found == most:
                    onward[r] = t
                    break
                i = min(max(np.int32(x * cells), np.int32(0)), np.int32(resolution - 1))
                j = min(max(np.int32(y * cells), np.int32(0)), np.int32(resolution - 1))
                k = min(max(np.int32(z * cells), np.int32(0)), np.int32(resolution - 1))
                a, b, c = i // BLOCK, j // BLOCK, k // BLOCK
                length = min(max(t * cone, step), longest)
                whole = blocks[np.int64(a) + across * (np.int64(b) + across * np.int64(c))] == 0
                cell = np.int64(i) + resolution * (np.int64(j) + resolution * np.int64(k))
                if not whole and bits[cell >> 3] >> np.uint8(cell & 7) & np.uint8(1):
                    if fills:
                        along[begin + found], lengths[begin + found] = t, length
                        positions[begin + found, 0] = min(max(x, zero), one)
                        positions[begin + found, 1] = min(max(y, zero), one)
                        positions[begin + found, 2] = min(max(z, zero), one)
                    found += 1
                    t += length
                else:
                    if whole:
                        way = min(_to_exit(x, ix, a, large), min(_to_exit(y, iy, b, large), _to_exit(z, iz, c, large)))
                    else:
                        way = min(_to_exit(x, ix, i, size), min(_to_exit(y, iy, j, size), _to_exit(z, iz, k, size)))
                    if cone == zero:
                        t += length * max(np.float32(math.ceil(way / length)), one)
                    else:
                        leave = t + way
                        t += length
                        while t < leave:
                            t += min(max(t * cone, step), longest)
            if not fills:
                starts[r + 1] = found
