"""Tables of few bits: the entries of each level become whole numbers, with one scale and one offset a level.

The uniform affine quantiser (Krishnamoorthi, arXiv 1806.08342, section 2). Where few bits are left, its range is
narrower than the entries' own: what lies outside is clamped, so that what lies inside is rounded less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from compress3d.nerf.field import Field
from compress3d.nerf.units import rows_by_level
from secateur.maths import straight_through

BITS = (2, 8)
"""The fewest and the most of an entry."""

_SHARES = torch.linspace(1.0, 0.2, 33)
_LEAST_STEP = 2.0**-14


@dataclass(frozen=True, slots=True, eq=False)
class TableRounding:
    """What few bits make of a table, as a function that gradients pass straight through.

    What it returns is a fixed point: a file stores it as it is.

    Args:
        counts: rows of each of L levels.
        bits: of an entry of each level.
        lows: (L,) the entry that 0 stands for.
        steps: (L,) from one whole number to the next.

    Raises:
        ValueError: the numbers do not fit one another.
    """

    counts: tuple[int, ...]
    bits: tuple[int, ...]
    lows: Float[Tensor, " L"]
    steps: Float[Tensor, " L"]

    def __post_init__(self) -> None:
        if any(not BITS[0] <= bits <= BITS[1] for bits in self.bits):
            raise ValueError(f"an entry must have {BITS[0]} to {BITS[1]} bits, got {list(self.bits)}")
        sizes = {len(self.counts), len(self.bits), len(self.lows), len(self.steps)}
        if len(sizes) != 1:
            raise ValueError(f"each level needs a count, bits, an offset and a step, got {sorted(sizes)} of them")
        if not bool((torch.isfinite(self.lows) & torch.isfinite(self.steps) & (self.steps > 0)).all()):
            raise ValueError("offsets must be finite, steps finite and above 0")

    def codes(self, table: Float[Tensor, "rows F"]) -> UInt8[Tensor, "rows F"]:
        """The whole numbers that stand for the entries."""
        most = self._by_row([2**bits - 1 for bits in self.bits], table)
        with torch.no_grad():
            lows, steps = self._by_row(self.lows, table), self._by_row(self.steps, table)
            return ((table - lows) / steps).round().clamp(min=torch.zeros_like(most), max=most).to(torch.uint8)

    def values(self, codes: UInt8[Tensor, "rows F"]) -> Float[Tensor, "rows F"]:
        """The entries that whole numbers stand for."""
        return codes.float() * self._by_row(self.steps, codes) + self._by_row(self.lows, codes)

    def __call__(self, table: Float[Tensor, "rows F"]) -> Float[Tensor, "rows F"]:
        """The rounded table, with the gradient of the table itself."""
        return straight_through(self.values(self.codes(table)), table)

    def _by_row(self, by_level: Tensor | list[int], like: Tensor) -> Float[Tensor, "rows 1"]:
        """What each row's level has, on the device of `like`."""
        values = torch.as_tensor(by_level, dtype=torch.float32)
        return values.repeat_interleave(torch.tensor(self.counts))[:, None].to(like.device)


def bits_of_levels(bits: int | Sequence[int], levels: int) -> tuple[int, ...]:
    """One number of bits for each of `levels` levels, where there may be one for all.

    Raises:
        ValueError: there are more or fewer of them than levels.
    """
    each = (bits,) * levels if isinstance(bits, int) else tuple(bits)
    if len(each) != levels:
        raise ValueError(f"bits must be one number, or one for each of {levels} levels, got {len(each)}")
    return each


@torch.no_grad()
def rounding_for(field: Field, bits: int | Sequence[int]) -> TableRounding:
    """The rounding of a field's table whose squared error is least among 33 widths of each level's range.

    Args:
        field: its table fixes scales and offsets.
        bits: of an entry, 2 to 8: one number, or one for each level.

    Raises:
        ValueError: `bits` does not fit.
    """
    counts = tuple(rows_by_level(field).tolist())
    each = bits_of_levels(bits, len(counts))
    ranges = [_range(rows, bits) for rows, bits in zip(field.table.detach().cpu().split(counts), each, strict=True)]
    lows, steps = (torch.stack(one) for one in zip(*ranges, strict=True))
    return TableRounding(counts, each, lows, steps)


def _range(rows: Float[Tensor, "n F"], bits: int) -> tuple[Tensor, Tensor]:
    """Offset and step of one level."""
    if not rows.numel():
        return torch.tensor(0.0), torch.tensor(1.0)
    low, high = rows.min(), rows.max()
    middle, half = (low + high) / 2, (high - low) / 2
    most = 2**bits - 1
    # A step that is nothing beside the entries would be lost when they are rounded to floats.
    least = torch.maximum(low.abs(), high.abs()).clamp_min(1e-30) * _LEAST_STEP / most
    best: tuple[float, Tensor, Tensor] | None = None
    for share in _SHARES:
        start = middle - share * half
        step = torch.maximum(2 * share * half / most, least)
        codes = ((rows - start) / step).round().clamp(0, most)
        error = float((codes * step + start - rows).square().sum())
        if best is None or error < best[0]:
            best = error, start, step
    assert best is not None
    return best[1], best[2]
