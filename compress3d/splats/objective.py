"""What gradient criteria of the core look through on a splat scene: the error of its renders, view by view."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.splats.pictures import Pictures, counted
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from secateur.training import generator_at

Error = Callable[[Tensor, Tensor], Tensor]
"""(image (H, W, 3), picture (H, W, 3)) -> one number, differentiable in the image; `photometric_loss` is one."""


def squared_error(image: Float[Tensor, "H W 3"], picture: Float[Tensor, "H W 3"]) -> Float[Tensor, ""]:
    """Mean over pixels and channels: smooth, so that it has a curvature where |image - picture| has none."""
    return (image - picture).square().mean()


@dataclass(frozen=True, slots=True, eq=False)
class Photometric:
    """The error of a scene's renders against pictures, one loss a view: an `Objective` of the core.

    Against its own renders a scene has no error and no gradient. Two ways lead on:

    - curvature: `MaskHessian(method="central_differences")`, `HessianDiagonal` and the like, for a rasteriser can be
      differentiated once only;
    - `noise`: with white noise on the pictures the gradient of the squared error is the noise seen through the
      Jacobian, so that criteria which average squares (`Fisher`, `Taylor` and `MaskTaylor` with reduce="square")
      estimate the diagonal of J^T J, the Fisher information of a picture, at one backward pass a view and repeat.

    Args:
        pictures: renders of the original, or photographs.
        error: what is measured.
        background: RGB behind scene and pictures.
        noise: standard deviation of what is added to the pictures, in units of full white.
        repeats: how often each view is given, with noise of its own each time.
        seed: of the noise.

    Raises:
        ValueError: there are no pictures, or a number is out of range.
    """

    pictures: Pictures
    error: Error = squared_error
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.0
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.pictures.cameras):
            raise ValueError("a photometric objective needs at least one picture")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {self.repeats}")

    def losses(self, target: SplatScene) -> Iterator[Tensor]:
        """The error of each view, rendered when it is asked for."""
        for number in range(self.repeats * len(self.pictures.cameras)):
            index = number % len(self.pictures.cameras)
            image = render(target, self.pictures.cameras[index], self.background)[0]
            picture = self.pictures.image(index, image.new_tensor(self.background)).to(image)
            if self.noise:
                drawn = torch.randn(picture.shape, generator=generator_at(self.seed, number))
                picture = picture + self.noise * drawn.to(picture)
            yield self.error(*counted(self.pictures, index, image, picture))
