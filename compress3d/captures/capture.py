"""Posed photographs: what a scene is trained on and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures.resample import area_average, premultiplied, reduced_size, straight

Colour = tuple[float, float, float]

WHITE: Colour = (1.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class StartPoints:
    """Points of a structure-from-motion model, to start a scene from.

    Args:
        xyz: (P, 3) positions in the world of the cameras.
        rgb: (P, 3) colours.
    """

    xyz: Float[Tensor, "P 3"]
    rgb: UInt8[Tensor, "P 3"]

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True, slots=True, eq=False)
class Capture:
    """C photographs of one size through pinholes, sorted by name. Pixels stay 8-bit until a view is asked for.

    Args:
        name: of the capture.
        cameras: C cameras.
        images: (C, H, W, 3) colours, not multiplied by alpha.
        names: C names of image files, relative to the capture.
        train: indices of the photographs to learn from.
        test: indices of those to judge by; none is in `train`.
        alphas: (C, H, W) straight alpha, or None where all photographs are opaque.
        masks: (C, H, W) 0 where a loss must ignore a pixel, 255 where it counts; None where all count.
        points: to start a scene from, or None.
        background: what `image` shows behind transparent pixels.
        skipped: how many listed photographs had no image file.

    Raises:
        ValueError: shapes, dtypes or indices do not fit.
    """

    name: str
    cameras: Cameras
    images: UInt8[Tensor, "C H W 3"]
    names: tuple[str, ...]
    train: Int64[Tensor, " T"]
    test: Int64[Tensor, " V"]
    alphas: UInt8[Tensor, "C H W"] | None = None
    masks: UInt8[Tensor, "C H W"] | None = None
    points: StartPoints | None = None
    background: Colour = WHITE
    skipped: int = 0

    def __post_init__(self) -> None:
        size = (len(self.cameras), self.cameras.height, self.cameras.width)
        wanted = {"images": (*size, 3), "alphas": size, "masks": size}
        for name, shape in wanted.items():
            tensor = getattr(self, name)
            if tensor is not None and (tuple(tensor.shape) != shape or tensor.dtype != torch.uint8):
                raise ValueError(f"{name} must be uint8 {shape}, got {tensor.dtype} {tuple(tensor.shape)}")
        if len(self.names) != len(self):
            raise ValueError(f"names must be {len(self)}, got {len(self.names)}")
        both = torch.cat([self.train, self.test])
        if both.dtype != torch.int64 or len(both.unique()) != len(both):
            raise ValueError("train and test must be int64 indices that are all different")
        if len(both) and not 0 <= int(both.min()) <= int(both.max()) < len(self):
            raise ValueError(f"train and test must be indices below {len(self)}")

    def __len__(self) -> int:
        return len(self.cameras)

    def image(self, index: int, background: Colour | Float[Tensor, 3] | None = None) -> Float[Tensor, "H W 3"]:
        """A photograph in [0, 1], in front of `background` ([0, 1]; the capture's own when None)."""
        image = self.images[index].float() / 255
        if self.alphas is None:
            return image
        behind = torch.as_tensor(self.background if background is None else background).to(image)
        alpha = self.alphas[index].float()[..., None] / 255
        return image * alpha + behind * (1 - alpha)

    def mask(self, index: int) -> Float[Tensor, "H W"] | None:
        """How much each pixel of a photograph counts, in [0, 1]; None where all count."""
        return None if self.masks is None else self.masks[index].float() / 255

    def subset(self, index: Tensor | Sequence[int]) -> Self:
        """The photographs at `index` ((M,) int64 or (C,) bool), in that order; splits follow."""
        index = index if isinstance(index, Tensor) else torch.tensor(index, dtype=torch.int64)
        chosen = torch.arange(len(self))[index]
        return replace(
            self,
            cameras=self.cameras[chosen],
            images=self.images[chosen],
            names=tuple(self.names[i] for i in chosen.tolist()),
            train=torch.isin(chosen, self.train).nonzero()[:, 0],
            test=torch.isin(chosen, self.test).nonzero()[:, 0],
            alphas=None if self.alphas is None else self.alphas[chosen],
            masks=None if self.masks is None else self.masks[chosen],
        )

    def resized(self, factor: float | None = None, long_side: int | None = None) -> Self:
        """The photographs made smaller by averaging over areas (alpha premultiplied); never larger.

        Args:
            factor: of width and height, at most 1.
            long_side: the most pixels of the longer side; give one of the two.

        Raises:
            ValueError: both or neither are given, or one is out of range.
        """
        if (factor is None) == (long_side is None):
            raise ValueError("give either factor or long_side")
        width, height = self.cameras.width, self.cameras.height
        if factor is not None:
            if not 0 < factor <= 1:
                raise ValueError(f"factor must be above 0 and at most 1, got {factor}")
            width, height = max(1, round(width * factor)), max(1, round(height * factor))
        elif long_side is not None:
            width, height = reduced_size(width, height, long_side)
        if (width, height) == (self.cameras.width, self.cameras.height):
            return self
        images = self.images.new_empty(len(self), height, width, 3)
        alphas = None if self.alphas is None else self.alphas.new_empty(len(self), height, width)
        masks = None if self.masks is None else self.masks.new_empty(len(self), height, width)
        for i, image in enumerate(self.images):
            pixels = image if self.alphas is None else torch.cat([image, self.alphas[i, :, :, None]], dim=2)
            small = straight(area_average(premultiplied(pixels), width, height))
            images[i] = small[..., :3]
            if alphas is not None:
                alphas[i] = small[..., 3]
            if masks is not None and self.masks is not None:
                weights = self.masks[i, :, :, None].float() / 255
                masks[i] = straight(area_average(weights, width, height))[..., 0]
        cameras = self.cameras.resized(width, height)
        return replace(self, cameras=cameras, images=images, alphas=alphas, masks=masks)
