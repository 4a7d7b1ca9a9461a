"""How close renders come to the photographs that they are drawn beside, whatever draws them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures import Capture
from compress3d.splats.evaluate import Quality
from secateur.console import Report, silent
from secateur.evaluation.record import Subject
from secateur.metrics.image import psnr, ssim

PHOTOGRAPHS = "photographs"
"""Name of the reference when a scene is compared with photographs, rather than with another scene's renders."""

Pair = tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]]
"""(render, photograph) of one view, in [0, 1]."""


def paired(image: Float[Tensor, "H W 3"], capture: Capture, index: int) -> Pair:
    """A render in front of the capture's background, clamped to [0, 1], and the photograph on its device.

    Where the capture's mask says that a pixel does not count, the render shows the photograph.
    """
    image = image.clamp(0, 1)
    photograph, mask = capture.image(index).to(image.device), capture.mask(index)
    return (image if mask is None else torch.lerp(photograph, image, mask.to(image.device)[..., None])), photograph


def psnr_of_pair(pair: Pair, capture: Capture, index: int) -> float:
    """In dB, over the pixels that count."""
    image, photograph = pair
    return float(psnr(image[None], photograph[None])) + _unmasked(capture, index)


def quality_of_pairs(
    beside: Callable[[int], Pair], capture: Capture, views: Sequence[int], report: Report = silent
) -> Quality:
    """PSNR, over the pixels that count, and SSIM of renders against the photographs at `views`.

    Args:
        beside: index of a photograph -> the pair.
        capture: the photographs.
        views: their indices.
        report: told how far it is.

    Raises:
        ValueError: there are no views, or the photographs are smaller than SSIM's window of 11 pixels.
    """
    if not views:
        raise ValueError(f"{capture.name}: no photographs to judge by")
    decibels, similarity = [], []
    for done, index in enumerate(views):
        image, photograph = beside(index)
        decibels.append(psnr_of_pair((image, photograph), capture, index))
        similarity.append(float(ssim(image[None], photograph[None])))
        report((done + 1) / len(views), "judging against photographs")
    return Quality(
        PHOTOGRAPHS,
        capture.cameras.width,
        capture.cameras.height,
        sum(decibels) / len(views),
        sum(similarity) / len(views),
        tuple(decibels),
        tuple(similarity),
    )


def photographs_subject(capture: Capture, views: Sequence[int], path: Path) -> Subject:
    """Photographs as the reference of a record: known by the pixels and poses that judge, and measured in nothing.

    Args:
        capture: the photographs.
        views: indices of those that judge; none: all are what it is known by.
        path: of the capture.
    """
    judging = capture.subset(list(views) or list(range(len(capture))))
    digest = hashlib.sha256(judging.cameras.sha256.encode())
    for pixels in (judging.images, judging.alphas, judging.masks):
        digest.update(b"" if pixels is None else pixels.cpu().contiguous().numpy().data)
    return Subject(capture.name, str(path), digest.hexdigest())


def photographs_protocol(capture: Capture, views: Sequence[int]) -> dict[str, Any]:
    """How something was held against the photographs at `views`."""
    return {
        "compared_with": PHOTOGRAPHS,
        "capture": capture.name,
        "views": len(views),
        "width": capture.cameras.width,
        "height": capture.cameras.height,
        "cameras_sha256": capture.cameras[torch.tensor(list(views), dtype=torch.int64)].sha256,
    }


def _unmasked(capture: Capture, index: int) -> float:
    """What pixels without error, because they do not count, have added to the PSNR of all; in dB, at most 0."""
    mask = capture.mask(index)
    return 0.0 if mask is None else 10 * math.log10(max(float(mask.mean()), 1e-6))
