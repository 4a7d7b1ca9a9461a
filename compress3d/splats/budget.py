"""What may be left of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from secateur.quantities import format_bytes, parse_decibels, parse_keep, parse_size


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be left of a scene; at most one of the three, none of them keeps everything.

    Args:
        keep: share of the Gaussians (a float in (0, 1]) or their count (an int).
        size_bytes: bytes that the file may have.
        psnr: dB that the file must hold against the original's own renders, on views held out from the compression.

    Raises:
        ValueError: more than one is given, or one is out of range.
    """

    keep: float | int | None = None
    size_bytes: int | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "size_bytes", "psnr") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a scene is compressed to one budget, got {' and '.join(given)}")
        if self.keep is not None:
            parse_keep(self.keep)
        if self.size_bytes is not None:
            parse_size(self.size_bytes)
        if self.psnr is not None:
            parse_decibels(self.psnr)

    @property
    def name(self) -> str:
        """In a few words: "keep 25%", "at most 2 MB", "hold 35 dB"."""
        if self.size_bytes is not None:
            return f"at most {format_bytes(self.size_bytes)}"
        if self.psnr is not None:
            return f"hold {self.psnr:g} dB"
        if isinstance(self.keep, int):
            return f"keep {self.keep:,} Gaussians"
        return f"keep {100 if self.keep is None else 100 * self.keep:.6g}%"

    @classmethod
    def parse(cls, keep: float | int | str | None, size_bytes: int | str | None, psnr: float | str | None) -> Self:
        """A budget from amounts as people write them."""
        return cls(
            None if keep is None else parse_keep(keep),
            None if size_bytes is None else parse_size(size_bytes),
            None if psnr is None else parse_decibels(psnr),
        )

    def count(self, total: int) -> int:
        """Gaussians that `keep` leaves of `total`: a share rounds down, but leaves at least one."""
        if self.keep is None:
            return total
        if isinstance(self.keep, int):
            return min(self.keep, total)
        return max(1, int(total * self.keep))
