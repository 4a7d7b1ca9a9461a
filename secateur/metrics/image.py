"""How alike two batches of images are. Images are (C, H, W, 3) in [0, 1]; every metric gives one number an image."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from secateur.metrics.perceptual import PerceptualDistance

SSIM_WINDOW = 11
"""Pixels of a side of the window: the smallest image that has a structural similarity."""

_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(images: Float[Tensor, "C H W 3"], reference: Float[Tensor, "C H W 3"]) -> Float[Tensor, " C"]:
    """Peak signal-to-noise ratio in dB of each image, both clamped to [0, 1]: -10 log10(mean squared error).

    The figure of a batch is the mean of this over images, as the novel-view literature has it, not the ratio of the
    mean error.

    Args:
        images: (C, H, W, 3) what was made.
        reference: (C, H, W, 3) what it should look like.

    Returns:
        (C,) float32; infinite where an image equals its reference.

    Raises:
        ValueError: the shapes differ, or are not (C, H, W, 3), or pixels are not finite (says of how many images).
    """
    images, reference = _clamped(images, reference)
    error = (images.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return (-10.0 * torch.log10(error)).float()


def ssim(images: Float[Tensor, "C H W 3"], reference: Float[Tensor, "C H W 3"]) -> Float[Tensor, " C"]:
    """Structural similarity of each image (Wang et al. 2004, eq. 13): 11x11 Gaussian window, sigma 1.5, data range 1.

    Images are reflected at their edges. The value is that of torchmetrics, whose unseparated window takes several times
    as long.

    Args:
        images: (C, H, W, 3), at least 11 pixels on each side.
        reference: (C, H, W, 3).

    Returns:
        (C,) float32, 1 where an image equals its reference.

    Raises:
        ValueError: as `psnr`, or an image is smaller than the window.
    """
    images, reference = _clamped(images, reference)
    if min(images.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels, got {images.shape[2]}x{images.shape[1]}")
    return torch.stack([_ssim(one, other) for one, other in zip(images, reference, strict=True)])


def lpips(
    images: Float[Tensor, "C H W 3"], reference: Float[Tensor, "C H W 3"], distance: PerceptualDistance
) -> Float[Tensor, " C"]:
    """Learned perceptual distance of each image (Zhang et al. 2018, arXiv 1801.03924); lower is closer.

    Args:
        images: (C, H, W, 3).
        reference: (C, H, W, 3).
        distance: on AlexNet or VGG-16; always give its name beside the number, the two are not comparable.
            `PerceptualDistance.load` says how to get the weights.

    Returns:
        (C,) float32, 0 where an image equals its reference.

    Raises:
        ValueError: as `psnr`, or an image is too small for the network.
    """
    images, reference = _clamped(images, reference)
    pairs = zip(images, reference, strict=True)
    return torch.cat([distance(one.permute(2, 0, 1)[None], other.permute(2, 0, 1)[None]) for one, other in pairs])


def _ssim(image: Float[Tensor, "H W 3"], reference: Float[Tensor, "H W 3"]) -> Tensor:
    edges = (SSIM_WINDOW // 2,) * 4
    x, y = (pad(one.permute(2, 0, 1)[None], edges, mode="reflect")[0] for one in (image, reference))
    offsets = torch.arange(SSIM_WINDOW, dtype=x.dtype, device=x.device) - SSIM_WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = (window / window.sum()).repeat(15, 1, 1)
    maps = torch.cat([x, y, x * x, y * y, x * y])[None]
    maps = conv2d(conv2d(maps, window[..., None], groups=15), window[:, :, None], groups=15)
    mean_x, mean_y, square_x, square_y, product = maps.view(5, 3, *maps.shape[2:])
    variances = (square_x - mean_x.square()).clamp(min=0) + (square_y - mean_y.square()).clamp(min=0)
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x.square() + mean_y.square() + _C1)
    return (luminance * (2 * covariance + _C2) / (variances + _C2)).mean()


def _clamped(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != reference.shape or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            "images and reference must both be (C, H, W, 3), "
            f"got {tuple(images.shape)} against {tuple(reference.shape)}"
        )
    for what, side in (("images", images), ("references", reference)):
        # A sum is not finite where a pixel is not; it may also overflow, so then pixels are counted.
        if not bool(side.sum(dtype=torch.float64).isfinite()):
            broken = int((~side.isfinite()).flatten(1).any(dim=1).sum())
            if broken:
                raise ValueError(f"{broken} of {len(side)} {what} have pixels that are not finite")
    return images.clamp(0.0, 1.0), reference.clamp(0.0, 1.0)
