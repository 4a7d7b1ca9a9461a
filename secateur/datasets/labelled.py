"""Images with a class each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """Grey images, their classes, and what the classes are called.

    Attributes:
        images: (N, H, W) uint8, 0 to 255.
        labels: (N,) int64, from 0.
        classes: a name a class.
    """

    images: UInt8[Tensor, "N H W"]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, low: float = 0.0, high: float = 1.0) -> Float[Tensor, "N 1 H W"]:
        """(N, 1, H, W) float32 images, black at `low` and white at `high`."""
        return self.images[:, None].float() / 255 * (high - low) + low

    def subset(self, indices: Iterable[int] | Int64[Tensor, " M"] | slice) -> Labelled:
        """The images at these places."""
        chosen = indices if isinstance(indices, slice | Tensor) else list(indices)
        return Labelled(self.images[chosen], self.labels[chosen], self.classes)
