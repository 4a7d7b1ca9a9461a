"""The levels of a multi-resolution grid: how fine each is, and how its vertices become rows of a table.

Müller et al.: Instant Neural Graphics Primitives with a Multiresolution Hash Encoding (arXiv 2201.05989), section 3,
equations 2 and 3 for the resolutions, equation 4 for the hash. Where the paper leaves it open, the conventions are:

- a position in [0, 1]^3 lies at x * scale + 0.5 of a level, scale = N_min b^l - 1, so vertices are never all aligned;
- a level has N = ceil(scale) + 1 cells and N + 1 vertices a side, of which (N + 1)^3 are rows if they fit the table;
- then a vertex (i, j, k) is row i + (N + 1) (j + (N + 1) k); no two vertices share one;
- otherwise it is row (i xor 2654435761 j xor 805459861 k) mod T, in 32-bit arithmetic that wraps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PRIMES = (1, 2_654_435_761, 805_459_861)
MOST_FEATURES = 8
LOG2_TABLE = (8, 22)
"""The smallest and the largest table, as powers of two."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of the grid.

    Args:
        scale: grid units from one side of the unit cube to the other.
        rows: of its table, before any is cut.
        hashed: whether several vertices may share a row; then `rows` is a power of two.

    Raises:
        ValueError: a number is out of range, or the rows are not those of the scale.
    """

    scale: float
    rows: int
    hashed: bool

    def __post_init__(self) -> None:
        if not 0 < self.scale < 2**20:
            raise ValueError(f"the scale of a level must be above 0 and below {2**20}, got {self.scale}")
        fits = self.rows & (self.rows - 1) == 0 if self.hashed else self.rows == self.side**3
        if not (fits and 0 < self.rows <= 1 << LOG2_TABLE[1]):
            raise ValueError(
                f"a {'hashed' if self.hashed else 'dense'} level of scale {self.scale} has {self.rows} rows"
            )

    @property
    def resolution(self) -> int:
        """Cells a side."""
        return math.ceil(self.scale) + 1

    @property
    def side(self) -> int:
        """Vertices a side."""
        return self.resolution + 1


def grid_levels(
    count: int = 16, log2_table: int = 19, lowest_resolution: int = 16, highest_resolution: int = 2048
) -> tuple[Level, ...]:
    """Levels of which each is finer than the one before by the same factor (arXiv 2201.05989, equations 2 and 3).

    Args:
        count: number of levels, L.
        log2_table: the most rows of a level, as a power of two, T; 8 to 22.
        lowest_resolution: cells a side of the first level, N_min.
        highest_resolution: cells a side of the last, N_max.

    Raises:
        ValueError: a number is out of range.
    """
    if not 1 <= count <= 32:
        raise ValueError(f"there must be 1 to 32 levels, got {count}")
    if not LOG2_TABLE[0] <= log2_table <= LOG2_TABLE[1]:
        raise ValueError(f"log2_table must be {LOG2_TABLE[0]} to {LOG2_TABLE[1]}, got {log2_table}")
    if not 2 <= lowest_resolution <= highest_resolution <= 2**19:
        raise ValueError(
            f"resolutions must be 2 to {2**19} and rise, got {lowest_resolution} and then {highest_resolution}"
        )
    growth = (highest_resolution / lowest_resolution) ** (1 / max(count - 1, 1))
    return tuple(_level(lowest_resolution * growth**index - 1, 1 << log2_table) for index in range(count))


def _level(scale: float, most: int) -> Level:
    # A resolution that is whole must not become the next one by rounding.
    scale = round(scale, 9)
    vertices = (math.ceil(scale) + 2) ** 3
    return Level(scale, min(vertices, most), vertices > most)


def first_rows(levels: Sequence[Level]) -> list[int]:
    """Where the rows of each level begin in the table that holds all of them, and where the last ends."""
    starts = [0]
    for level in levels:
        starts.append(starts[-1] + level.rows)
    return starts
