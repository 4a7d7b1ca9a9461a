"""What each Gaussian contributes to the pixels of a set of views."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RayContributions:
    """Per-Gaussian statistics over all pixels of all views, one ray a pixel.

    A Gaussian is hit by a ray when its alpha there is at least 1/255 and the ray was not stopped before it. Its blending
    weight on the ray is alpha * T, with T the transmittance of what lies in front.

    Args:
        sum: (N,) float32, sum of the blending weights (the gradient of the image's sum by the Gaussian's grey level).
        max: (N,) float32, largest blending weight on any ray, 0 to 1.
        count: (N,) int64, number of rays that hit the Gaussian.
        top1: (N,) int64, number of rays on which this Gaussian has the largest blending weight.
        pixel_normalised: (N,) float32, sum over views of (sum of the blending weights / count) in that view.
        transmittance: (N,) float32, sum of T over the rays that hit the Gaussian.

    Raises:
        ValueError: the tensors are not of one length.
    """

    sum: Float[Tensor, " N"]
    max: Float[Tensor, " N"]
    count: Int[Tensor, " N"]
    top1: Int[Tensor, " N"]
    pixel_normalised: Float[Tensor, " N"]
    transmittance: Float[Tensor, " N"]

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if len(set(shapes.values())) != 1 or self.sum.ndim != 1:
            raise ValueError(f"contributions must all be (N,), got {shapes}")
        for name in ("count", "top1"):
            if getattr(self, name).dtype != torch.int64:
                raise ValueError(f"{name} must be int64, got {getattr(self, name).dtype}")

    def __len__(self) -> int:
        return len(self.sum)
