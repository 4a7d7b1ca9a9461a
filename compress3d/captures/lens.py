"""What a lens does to the straight lines of a pinhole: intrinsics and distortion of one photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Lens:
    """Intrinsics in pixels (centre of the first pixel at 0.5, 0.5), and the distortion on top of them.

    With u, v = x/z, y/z, and r = sqrt(u^2 + v^2), the distorted point of a perspective lens is

        radial(r^2) * (u, v) + (2 p1 u v + p2 (r^2 + 2 u^2),  2 p2 u v + p1 (r^2 + 2 v^2))
        radial(s) = (1 + n1 s + n2 s^2 + ...) / (1 + d1 s + d2 s^2 + ...)

    and that of a fisheye, with theta = atan(r), is theta (1 + n1 theta^2 + n2 theta^4 + ...) / r * (u, v).
    Sources: OpenCV's documentation of `calib3d` and `fisheye` (Brown 1966; Kannala and Brandt 2006).

    Args:
        width: image width.
        height: image height.
        fx, fy: focal lengths.
        cx, cy: principal point.
        numerator: n1, n2, ...
        denominator: d1, d2, ..., of a perspective lens only.
        tangential: (p1, p2), of a perspective lens only.
        fisheye: which of the two formulas holds.

    Raises:
        ValueError: a number that no camera has; the message names it.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    numerator: tuple[float, ...] = ()
    denominator: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"the image size must be positive, got {self.width}x{self.height}")
        for axis, focal, size in (("fx", self.fx, self.width), ("fy", self.fy, self.height)):
            if not 1e-3 * size < focal < 1e5 * size:
                raise ValueError(f"the focal length {axis} must be a positive number of pixels, got {focal:g}")
        for axis, centre, size in (("cx", self.cx, self.width), ("cy", self.cy, self.height)):
            if not -size <= centre <= 2 * size:
                raise ValueError(f"the principal point's {axis} = {centre:g} is far outside an image of {size} pixels")
        if not all(map(math.isfinite, (*self.numerator, *self.denominator, *self.tangential))):
            raise ValueError("the distortion coefficients must be finite")

    @property
    def is_pinhole(self) -> bool:
        """Whether there is no distortion."""
        return not (self.fisheye or any(self.numerator) or any(self.denominator) or any(self.tangential))

    @property
    def K(self) -> Float[Tensor, "3 3"]:
        """Pinhole matrix, float64."""
        rows = [[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]]
        return torch.tensor(rows, dtype=torch.float64)

    def fitted(self, width: int, height: int) -> Self:
        """The same lens for an image of this size, of the same aspect to within a pixel.

        Raises:
            ValueError: the aspect is another.
        """
        if (width, height) == (self.width, self.height):
            return self
        if abs(width * self.height - height * self.width) > max(self.width, self.height, width, height):
            raise ValueError(
                f"the intrinsics are for {self.width}x{self.height} pixels, but the image has {width}x{height}"
            )
        return self._scaled(width, height, width / self.width, height / self.height)

    def zoomed(self, factor: float) -> Self:
        """The same size of image of its middle, `factor` times as large, without distortion."""
        middle_x, middle_y = self.width / 2, self.height / 2
        return replace(
            self,
            fx=self.fx * factor,
            fy=self.fy * factor,
            cx=middle_x + (self.cx - middle_x) * factor,
            cy=middle_y + (self.cy - middle_y) * factor,
            numerator=(),
            denominator=(),
            tangential=(0.0, 0.0),
            fisheye=False,
        )

    def normalized(self, pixels: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 2"]:
        """Pixel coordinates -> coordinates on the plane z = 1, as if there were no distortion."""
        return (pixels - pixels.new_tensor([self.cx, self.cy])) / pixels.new_tensor([self.fx, self.fy])

    def project(self, points: Float[Tensor, "*shape 2"]) -> Float[Tensor, "*shape 2"]:
        """Points (x/z, y/z) on the plane z = 1 -> where the lens shows them, in pixels."""
        distorted = self._fisheye(points) if self.fisheye else self._perspective(points)
        return distorted * points.new_tensor([self.fx, self.fy]) + points.new_tensor([self.cx, self.cy])

    def _perspective(self, points: Tensor) -> Tensor:
        u, v = points.unbind(dim=-1)
        squared = u * u + v * v
        radial = _polynomial(self.numerator, squared) / _polynomial(self.denominator, squared)
        p1, p2 = self.tangential
        return torch.stack(
            [
                u * radial + 2 * p1 * u * v + p2 * (squared + 2 * u * u),
                v * radial + 2 * p2 * u * v + p1 * (squared + 2 * v * v),
            ],
            dim=-1,
        )

    def _fisheye(self, points: Tensor) -> Tensor:
        radius = points.norm(dim=-1, keepdim=True)
        theta = radius.atan()
        distorted = theta * _polynomial(self.numerator, theta * theta)
        return points * torch.where(radius > 1e-12, distorted / radius.clamp(min=1e-12), 1.0)

    def _scaled(self, width: int, height: int, by_x: float, by_y: float) -> Self:
        return replace(
            self,
            width=width,
            height=height,
            fx=self.fx * by_x,
            fy=self.fy * by_y,
            cx=self.cx * by_x,
            cy=self.cy * by_y,
        )


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """1 + c1 x + c2 x^2 + ..."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return total + 1
