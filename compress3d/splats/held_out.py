"""Views of an original that scenes are held against, one at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from secateur.evaluation.chunks import Rows
from secateur.metrics.image import psnr, ssim

HELD_BYTES = 1 << 28
"""Renders of the original are held where they take no more; beyond that each is made anew when it is needed."""


class HeldOut:
    """Renders of an original through views.

    Args:
        original: what scenes stand for.
        cameras: the views.
    """

    def __init__(self, original: SplatScene, cameras: Cameras) -> None:
        self.original, self.cameras = original, cameras

    @cached_property
    def held(self) -> Float[Tensor, "C H W 3"] | None:
        """All renders; None where they would take more than `HELD_BYTES`."""
        if 12 * len(self.cameras) * self.cameras.height * self.cameras.width > HELD_BYTES:
            return None
        return render(self.original, self.cameras)

    def reference(self, index: int) -> Float[Tensor, "1 H W 3"]:
        """The original through one view."""
        return render(self.original, self.cameras[index]) if self.held is None else self.held[index : index + 1]


class Compared(Dataset[tuple[Tensor, Tensor]]):
    """A scene and the original through each view, (1, H, W, 3) both, rendered when they are asked for."""

    def __init__(self, scene: SplatScene, held_out: HeldOut) -> None:
        self.scene, self.held_out = scene, held_out

    def __len__(self) -> int:
        return len(self.held_out.cameras)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return render(self.scene, self.held_out.cameras[index]), self.held_out.reference(index)

    def each(self) -> Iterator[tuple[Float[Tensor, "1 H W 3"], Float[Tensor, "1 H W 3"]]]:
        """One view after another."""
        return map(self.__getitem__, range(len(self)))


def likeness(pairs: Iterator[tuple[Tensor, Tensor]], similarity: bool = True) -> Rows:
    """Rows "psnr", in dB, and "ssim" (not where `similarity` is False), of each pair of an image and its reference."""
    decibels, similar = [], []
    for image, reference in pairs:
        decibels.append(psnr(image, reference))
        if similarity:
            similar.append(ssim(image, reference))
    rows = {"psnr": torch.cat(decibels).cpu()}
    return rows | {"ssim": torch.cat(similar).cpu()} if similarity else rows
