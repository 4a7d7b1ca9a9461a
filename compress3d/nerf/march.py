"""Where rays look: samples along them, in occupied cells of the unit cube only.

A ray's samples lie on a lattice that starts, by a random share of a step, behind its entry into the cube. Steps are as
long as `step`, or grow with the distance (cone steps: arXiv 2201.05989, appendix E.1). Cells that are empty,
and blocks of 8^3 such cells, are skipped by whole steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba as nb
import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.nerf.hashgrid_kernels import FAST_MATH
from compress3d.nerf.occupancy import BLOCK, Occupancy
from compress3d.nerf.rays import Rays

_RAYS = 256
"""Rays that a thread takes at a time."""


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
    first = near + (near * stride.cone).clamp(stride.step, stride.longest) * shift
    return torch.where(far > near, first, math.inf).contiguous()


def march(
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"], most: int = 1 << 14
) -> tuple[Samples, Float[Tensor, " R"]]:
    """The next samples of rays, on the CPU.

    Args:
        rays: R of them.
        occupancy: the cells to look into.
        stride: from sample to sample.
        distances: where each ray's lattice goes on, as `entry` or the call before gave it.
        most: samples of a ray.

    Returns:
        the samples, and the distances to go on from: infinite where the ray has left the cube.
    """
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
    rays: Rays, occupancy: Occupancy, stride: Stride, distances: Float[Tensor, " R"]
) -> tuple[Samples, Float[Tensor, " R"]]:
    """`march` to the end in plain torch, on any device: each lattice point is made, and those in empty cells dropped.

    Raises:
        ValueError: the stride has cone steps.
    """
    if stride.cone:
        raise ValueError("the reference has steps of one length only")
    _, far = _slab(rays)
    steps = torch.arange(math.ceil(math.sqrt(3) / stride.step) + 1, device=distances.device)
    lattice = distances[:, None] + steps * stride.step
    inside = lattice < far[:, None]
    ray, index = inside.nonzero(as_tuple=True)
    along = lattice[ray, index]
    positions = rays.origins[ray] + along[:, None] * rays.directions[ray]
    stays = occupancy.occupied()[occupancy.cells_of(positions)]
    ray, along, positions = ray[stays], along[stays], positions[stays]
    starts = torch.zeros(len(rays) + 1, dtype=torch.int64, device=ray.device)
    starts[1:] = torch.bincount(ray, minlength=len(rays)).cumsum(0)
    samples = Samples(starts, along, torch.full_like(along, stride.step), positions)
    return samples, torch.full_like(distances, math.inf)


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
