"""Augmentation of batches: pure functions of images, labels and a generator.

Labels are classes (N,), maps of classes (N, H, W) that move with their images, or shares of classes (N, classes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "N C H W"]
Labels = Shaped[Tensor, "N ..."]


@dataclass(frozen=True)
class Augmentation:
    """What happens to a batch before a network trains on it; the defaults change nothing.

    Args:
        shift: the most pixels by which an image moves along each axis; its edge goes on into what comes free.
        flip: probability that an image is mirrored left to right.
        erase: probability that a rectangle of an image is erased.
        mixup: alpha of mixup's Beta distribution; 0: none.
        cutmix: alpha of CutMix's Beta distribution; 0: none. Where both are on, a coin decides for each batch.

    Raises:
        ValueError: an option is out of range.
    """

    shift: int = 0
    flip: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.shift < 0 or min(self.mixup, self.cutmix) < 0:
            raise ValueError(
                f"shift, mixup and cutmix must be at least 0, got {self.shift}, {self.mixup}, {self.cutmix}"
            )
        if not (0 <= self.flip <= 1 and 0 <= self.erase <= 1):
            raise ValueError(f"flip and erase are probabilities, got {self.flip} and {self.erase}")

    def __call__(
        self, images: Images, labels: Labels, classes: int, generator: torch.Generator
    ) -> tuple[Images, Labels]:
        """The changed batch.

        Args:
            images: (N, C, H, W).
            labels: (N,) or (N, H, W) int64.
            classes: how many there are; mixed labels are (N, classes) shares of them.
            generator: on the CPU.

        Raises:
            ValueError: maps of classes are to be mixed.
        """
        if self.shift:
            images, labels = shift(images, labels, self.shift, generator)
        if self.flip:
            images, labels = flip(images, labels, self.flip, generator)
        if self.erase:
            images = erase(images, self.erase, generator)
        if not (self.mixup or self.cutmix):
            return images, labels
        if labels.dim() != 1:
            raise ValueError("mixup and cutmix mix labels of images: they know nothing of maps")
        shares = functional.one_hot(labels, classes).to(images.dtype)
        by_pixels = self.cutmix and (not self.mixup or bool(torch.rand((), generator=generator) < 0.5))
        if by_pixels:
            return cutmix(images, shares, self.cutmix, generator)
        return mixup(images, shares, self.mixup, generator)


def shift(images: Images, labels: Labels, most: int, generator: torch.Generator) -> tuple[Images, Labels]:
    """Move each image by up to `most` pixels along each axis, and maps of classes (N, H, W) with them."""
    moves = torch.randint(-most, most + 1, (2, len(images), 1, 1), generator=generator)
    height, width = images.shape[-2:]
    rows = (torch.arange(height)[None, :, None] + moves[0]).clamp_(0, height - 1)
    columns = (torch.arange(width)[None, None, :] + moves[1]).clamp_(0, width - 1)
    which = torch.arange(len(images))[:, None, None]
    moved = images.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2).contiguous()
    return moved, labels[which, rows, columns] if labels.dim() == 3 else labels


def flip(images: Images, labels: Labels, chance: float, generator: torch.Generator) -> tuple[Images, Labels]:
    """Mirror each image left to right with a probability of `chance`, and maps of classes with them."""
    mirrored = torch.rand(len(images), generator=generator) < chance
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if labels.dim() == 3:
        labels = torch.where(mirrored[:, None, None], labels.flip(-1), labels)
    return images, labels


def erase(
    images: Images, chance: float, generator: torch.Generator, smallest: float = 0.02, largest: float = 0.2
) -> Images:
    """Replace a rectangle of an image by its mean with a probability of `chance`.

    Random erasing (Zhong et al. 2017, arXiv 1708.04896): of `smallest` to `largest` of the area, of an aspect ratio of
    0.3 to 1/0.3.
    """
    count, (height, width) = len(images), images.shape[-2:]
    chosen, area, aspect, top, left = torch.rand(5, count, generator=generator).unbind()
    area = (smallest + (largest - smallest) * area) * height * width
    aspect = 0.3 ** (2 * aspect - 1)
    high, wide = (area * aspect).sqrt().clamp(max=height), (area / aspect).sqrt().clamp(max=width)
    box = _box(top * (height - high), left * (width - wide), high, wide, (height, width))
    box = box & (chosen < chance)[:, None, None]
    return torch.where(box[:, None], images.mean(dim=(1, 2, 3), keepdim=True), images)


def mixup(
    images: Images, shares: Float[Tensor, "N classes"], alpha: float, generator: torch.Generator
) -> tuple[Images, Float[Tensor, "N classes"]]:
    """lambda x_i + (1 - lambda) x_j of images and labels, lambda ~ Beta(alpha, alpha), j a permutation.

    Zhang et al. 2017, arXiv 1710.09412, eq. 1, one lambda a batch as in its algorithm.
    """
    kept = _beta(alpha, generator)
    other = torch.randperm(len(images), generator=generator)
    return kept * images + (1 - kept) * images[other], kept * shares + (1 - kept) * shares[other]


def cutmix(
    images: Images, shares: Float[Tensor, "N classes"], alpha: float, generator: torch.Generator
) -> tuple[Images, Float[Tensor, "N classes"]]:
    """A rectangle of 1 - lambda of the area comes from another image; labels mix by the pixels that really did.

    Yun et al. 2019, arXiv 1905.04899, eq. 1 and 2 and algorithm A1: one rectangle a batch, its centre anywhere.
    """
    share = (1 - _beta(alpha, generator)) ** 0.5
    height, width = images.shape[-2:]
    high, wide = share * height, share * width
    top, left = torch.rand(2, generator=generator) * torch.tensor([height, width]) - torch.tensor([high, wide]) / 2
    box = _box(top[None], left[None], torch.tensor([high]), torch.tensor([wide]), (height, width))[0]
    other = torch.randperm(len(images), generator=generator)
    kept = 1 - float(box.float().mean())
    return torch.where(box, images[other], images), kept * shares + (1 - kept) * shares[other]


def _box(top: Tensor, left: Tensor, high: Tensor, wide: Tensor, size: tuple[int, int]) -> Bool[Tensor, "N H W"]:
    rows, columns = (torch.arange(length)[None] + 0.5 for length in size)
    inside_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
    inside_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return inside_rows[:, :, None] & inside_columns[:, None, :]


def _beta(alpha: float, generator: torch.Generator) -> float:
    # torch's Beta draws from the global generator alone.
    seed = int(torch.randint(2**31, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))
