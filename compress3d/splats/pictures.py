"""What a scene is made to look like: pictures with cameras, in front of any background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render_each
from compress3d.splats.scene import SplatScene

BLACK = (0.0, 0.0, 0.0)
WHITE = (1.0, 1.0, 1.0)


class Pictures(Protocol):
    """C pictures: renders of another scene, or the photographs of a `Capture`."""

    @property
    def cameras(self) -> Cameras:
        """C cameras."""
        ...

    def image(self, index: int, background: Float[Tensor, " 3"]) -> Float[Tensor, "H W 3"]:
        """Picture `index` in front of `background`, where it is transparent."""
        ...

    def mask(self, index: int) -> Float[Tensor, "H W"] | None:
        """How much each pixel counts, in [0, 1]; None where all count."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Renders:
    """A scene's own renders.

    Args:
        cameras: C views.
        colors: (C, H, W, 3) on black.
        alphas: (C, H, W).
    """

    cameras: Cameras
    colors: Float[Tensor, "C H W 3"]
    alphas: Float[Tensor, "C H W"]

    @classmethod
    def of(cls, scene: SplatScene, cameras: Cameras, progress: Callable[[int], None] | None = None) -> Self:
        """Render `scene` at `cameras`; 16 bytes a pixel. `progress` is called with the number of views done."""
        size = (len(cameras), cameras.height, cameras.width)
        colors, alphas = torch.empty(*size, 3), torch.empty(size)
        with torch.no_grad():
            for index, (image, alpha) in enumerate(render_each(scene, cameras, BLACK)):
                colors[index], alphas[index] = image, alpha
                if progress is not None:
                    progress(index + 1)
        return cls(cameras, colors, alphas)

    def image(self, index: int, background: Float[Tensor, " 3"]) -> Float[Tensor, "H W 3"]:
        return self.colors[index] + (1 - self.alphas[index])[..., None] * background

    def mask(self, index: int) -> None:
        return None


def drawn_background(generator: torch.Generator, share: float) -> Float[Tensor, " 3"]:
    """A random colour with this probability, and white otherwise."""
    drawn = torch.rand(4, generator=generator)
    return drawn[:3] if float(drawn[3]) < share else torch.tensor(WHITE)


def counted(pictures: Pictures, index: int, *images: Float[Tensor, "H W 3"]) -> tuple[Float[Tensor, "H W 3"], ...]:
    """The images, black where picture `index` does not count: nothing of it reaches others through SSIM's window."""
    mask = pictures.mask(index)
    return images if mask is None else tuple(image * mask.to(image)[..., None] for image in images)
