"""How close a field comes to photographs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.render import render
from compress3d.splats.evaluate import Quality
from compress3d.splats.photographs import PHOTOGRAPHS
from secateur.console import Report, silent
from secateur.metrics.image import psnr, ssim


def beside_photograph(
    field: Field, capture: Capture, index: int
) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]]:
    """(render, photograph) of one view in front of the capture's background, in [0, 1].

    Where the capture's mask says that a pixel does not count, the render shows the photograph.
    """
    image = render(field, capture.cameras, index, capture.background).image.clamp(0, 1)
    photograph, mask = capture.image(index), capture.mask(index)
    return (image if mask is None else torch.lerp(photograph, image, mask[..., None])), photograph


def quality_to_photographs(field: Field, capture: Capture, views: Sequence[int], report: Report = silent) -> Quality:
    """PSNR, over the pixels that count, and SSIM of renders against the photographs at `views`.

    Raises:
        ValueError: there are no views, or the photographs are smaller than SSIM's window of 11 pixels.
    """
    if not views:
        raise ValueError(f"{capture.name}: no photographs to judge by")
    decibels, similarity = [], []
    for done, index in enumerate(views):
        image, photograph = beside_photograph(field, capture, index)
        decibels.append(float(psnr(image[None], photograph[None])) + _unmasked(capture, index))
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


def _unmasked(capture: Capture, index: int) -> float:
    """What pixels without error, because they do not count, have added to the PSNR of all; in dB, at most 0."""
    mask = capture.mask(index)
    return 0.0 if mask is None else 10 * math.log10(max(float(mask.mean()), 1e-6))
