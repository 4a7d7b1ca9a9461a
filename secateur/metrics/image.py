"""How alike two batches of images are. Images are (C, H, W, 3) in [0, 1]; every metric gives one number an image."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


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
        ValueError: the shapes differ, or are not (C, H, W, 3).
    """
    images, reference = _clamped(images, reference)
    error = (images.double() - reference.double()).square().mean(dim=(1, 2, 3))
    return (-10.0 * torch.log10(error)).float()


def ssim(images: Float[Tensor, "C H W 3"], reference: Float[Tensor, "C H W 3"]) -> Float[Tensor, " C"]:
    """Structural similarity of each image (Wang et al. 2004): 11x11 Gaussian window, sigma 1.5, data range 1.

    Args:
        images: (C, H, W, 3), at least 11 pixels on each side.
        reference: (C, H, W, 3).

    Returns:
        (C,) float32, 1 where an image equals its reference.

    Raises:
        ValueError: the shapes differ, or are not (C, H, W, 3), or an image is smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, reference = _clamped(images, reference)
    if min(images.shape[1:3]) < 11:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels, got {images.shape[2]}x{images.shape[1]}")
    values = []
    for one, other in zip(images, reference, strict=True):
        # One image at a time: the metric holds five filtered copies of what it is given.
        pair = one.permute(2, 0, 1)[None], other.permute(2, 0, 1)[None]
        value = structural_similarity_index_measure(*pair, sigma=1.5, data_range=1.0)
        assert isinstance(value, Tensor)
        values.append(value)
    return torch.stack(values)


def lpips(
    images: Float[Tensor, "C H W 3"], reference: Float[Tensor, "C H W 3"], net: Literal["alex", "vgg"] = "alex"
) -> Float[Tensor, " C"]:
    """Learned perceptual distance of each image (Zhang et al. 2018), images rescaled to [-1, 1]; lower is closer.

    Args:
        images: (C, H, W, 3).
        reference: (C, H, W, 3).
        net: the feature network; always name it beside the number, they are not comparable.

    Returns:
        (C,) float32.

    Raises:
        ValueError: the shapes differ, or are not (C, H, W, 3).
        ModuleNotFoundError: torchvision, which holds the feature networks, is not installed.
    """
    images, reference = _clamped(images, reference)
    try:
        import torchvision  # noqa: F401
        from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
    except ImportError as error:
        raise ModuleNotFoundError("LPIPS needs torchvision: pip install torchvision") from error
    values = [
        learned_perceptual_image_patch_similarity(
            one.permute(2, 0, 1)[None], other.permute(2, 0, 1)[None], net_type=net, normalize=True
        )
        for one, other in zip(images, reference, strict=True)
    ]
    return torch.stack(values)


def _clamped(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if images.shape != reference.shape or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            "images and reference must both be (C, H, W, 3), "
            f"got {tuple(images.shape)} against {tuple(reference.shape)}"
        )
    return images.clamp(0.0, 1.0), reference.clamp(0.0, 1.0)
