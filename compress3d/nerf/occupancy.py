"""Which cells of the cube may hold something: an occupancy grid that follows the field as it is trained.

As in Instant NGP (arXiv 2201.05989, appendix C): each cell holds a density that decays, is raised by what the field
says at random points of it, and the cells above a threshold are a bitfield, by which rays skip what is empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

DECAY = 0.95
LEAST_OPACITY = 0.01
"""A cell is empty if a step through it would be less opaque than this, or than the mean cell where that is less."""

RESOLUTIONS = (8, 512)

BLOCK = 8
"""Cells a side of a block: rays skip empty blocks as a whole."""


class Occupancy(nn.Module):
    """Cells of the unit cube.

    Args:
        resolution: cells a side, a multiple of 8, 8 to 512.
        possible: (R, R, R) by z, y, x: which cells may ever hold something; None: all.

    Raises:
        ValueError: the resolution is out of range, or `possible` has another shape.
    """

    densities: Tensor
    bits: Tensor
    possible: Tensor

    def __init__(self, resolution: int = 128, possible: Bool[Tensor, "R R R"] | None = None) -> None:
        super().__init__()
        low, high = RESOLUTIONS
        if resolution % 8 or not low <= resolution <= high:
            raise ValueError(f"resolution must be a multiple of 8 from {low} to {high}, got {resolution}")
        cells = torch.ones((resolution,) * 3, dtype=torch.bool) if possible is None else possible
        if cells.shape != (resolution,) * 3:
            raise ValueError(f"possible must be ({resolution},) * 3, got {tuple(cells.shape)}")
        self.resolution = resolution
        self.register_buffer("possible", pack_bits(cells.flatten()))
        self.register_buffer("densities", torch.zeros(resolution**3))
        self.register_buffer("bits", self.possible.clone())
        self._derived: dict[str, tuple[tuple[object, ...], Tensor]] = {}

    def occupied(self) -> Bool[Tensor, " cells"]:
        """Which cells rays stop at; cell x + R (y + R z)."""
        return unpack_bits(self.bits)

    @property
    def blocks(self) -> UInt8[Tensor, " blocks"]:
        """1 for blocks of cells of which one is occupied, block x + R/8 (y + R/8 z); kept until the bits change."""
        return self._kept("blocks", self._made_blocks)

    def _made_blocks(self) -> Tensor:
        side = self.resolution // BLOCK
        rows = (self.bits != 0).view(side, BLOCK, side, BLOCK, side)
        return rows.any(dim=3).any(dim=1).flatten().to(torch.uint8)

    @property
    def by_axis(self) -> Bool[Tensor, "R R R"]:
        """Which cells are occupied, by x, y, z; kept until the bits change."""
        return self._kept("by_axis", lambda: self.occupied().view((self.resolution,) * 3).permute(2, 1, 0).contiguous())

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        state = (self.bits.device, self.bits.data_ptr(), self.bits._version)
        before = self._derived.get(name)
        if before is None or before[0] != state:
            before = self._derived[name] = (state, make())
        return before[1]

    @property
    def share(self) -> float:
        """Of the cells that are occupied."""
        return float(self.occupied().float().mean())

    def cells_of(self, positions: Float[Tensor, "*shape 3"]) -> Int64[Tensor, "*shape"]:
        """The cell of each position in the unit cube."""
        x, y, z = (positions * self.resolution).long().clamp(0, self.resolution - 1).unbind(dim=-1)
        return x + self.resolution * (y + self.resolution * z)

    def holds(self, positions: Float[Tensor, "*shape 3"]) -> Bool[Tensor, "*shape"]:
        """Whether the cell of each position in the unit cube is occupied."""
        cells = self.cells_of(positions)
        return (self.bits[cells >> 3] >> (cells & 7) & 1).bool()

    @torch.no_grad()
    def update(
        self,
        density: Callable[[Float[Tensor, "N 3"]], Float[Tensor, " N"]],
        step_size: float,
        generator: torch.Generator,
        samples: int | None = None,
    ) -> None:
        """Let all densities decay, raise those of random cells to what the field says there, and renew the bits.

        Args:
            density: of the field at N points of the unit cube, per side of the cube.
            step_size: of the rays, in sides of the cube.
            generator: of the points.
            samples: half of them in any cells that may hold something, half in those that are occupied; None: one in
                each that may.
        """
        cells = self._chosen(samples, generator)
        positions = self._points(cells, generator)
        self.densities *= DECAY
        if len(cells):
            self.densities.scatter_reduce_(0, cells, density(positions).float(), reduce="amax")
        opacities = 1 - torch.exp(-self.densities * step_size)
        possible = unpack_bits(self.possible)
        mean = float(opacities[possible].mean()) if bool(possible.any()) else 0.0
        self.bits.copy_(pack_bits((opacities > min(mean, LEAST_OPACITY)) & possible))

    def _chosen(self, samples: int | None, generator: torch.Generator) -> Int64[Tensor, " M"]:
        possible = unpack_bits(self.possible).nonzero()[:, 0]
        if samples is None or not len(possible):
            return possible
        occupied = self.occupied().nonzero()[:, 0]
        halves = [possible, occupied if len(occupied) else possible]
        drawn = [torch.randint(len(half), (samples // 2,), generator=generator) for half in halves]
        return torch.cat([half[index.to(half.device)] for half, index in zip(halves, drawn, strict=True)])

    def _points(self, cells: Int64[Tensor, " M"], generator: torch.Generator) -> Float[Tensor, "M 3"]:
        rows, x = cells // self.resolution, cells % self.resolution
        corner = torch.stack([x, rows % self.resolution, rows // self.resolution], dim=1)
        return (corner + torch.rand(len(cells), 3, generator=generator).to(cells.device)) / self.resolution


def pack_bits(cells: Bool[Tensor, " cells"]) -> UInt8[Tensor, " bytes"]:
    """Eight cells a byte, the first in the lowest bit."""
    powers = 2 ** torch.arange(8, device=cells.device)
    return (cells.reshape(-1, 8) * powers).sum(dim=1).to(torch.uint8)


def unpack_bits(bits: UInt8[Tensor, " bytes"]) -> Bool[Tensor, " cells"]:
    """The reverse of `pack_bits`."""
    return (bits[:, None] >> torch.arange(8, device=bits.device) & 1).bool().flatten()


def step_of(resolution: int, steps: int) -> float:
    """The length of a ray's step if `steps` of them reach through the cube's diagonal; at most a cell's diagonal."""
    return math.sqrt(3) / max(steps, resolution)
