"""Images as pixels: what Pillow reads, made one of two kinds, grey or RGB, with one clear error for each that fails."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from secateur.evaluation.chunks import Unreadable

FORMATS = ("PNG", "JPEG", "WEBP")
"""What Pillow may take a file for."""

_GREY = frozenset({"1", "L"})
_DEEP_GREY = frozenset({"I", "I;16", "I;16B", "I;16L"})
_WHITE = (255, 255, 255, 255)


def read_image(path: str | os.PathLike[str]) -> Float[Tensor, "C H W"]:
    """The pixels of an image in [0, 1], as it is looked at: turned as its EXIF says, in front of white.

    Grey images have one channel, all others three. Levels of 16 bits are kept where the image is grey; Pillow itself
    reads the upper 8 bits of RGB. Colour profiles are not applied. The first picture of an animation is taken.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, cut short, or so large that it may be meant to fill the memory (Pillow's limit,
            `PIL.Image.MAX_IMAGE_PIXELS`); names the file.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return _pixels(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "no"
        raise ValueError(f"{path}: more than {limit} pixels, which Pillow takes for an attack") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not a PNG, JPEG or WebP image") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: a damaged image ({error})") from error


def as_grey(image: Float[Tensor, "C H W"]) -> Float[Tensor, "1 H W"]:
    """The luma of an image (ITU-R BT.601), bit for bit its channel where all channels are equal."""
    if len(image) == 1:
        return image
    red, green, blue = image
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.where((red == green) & (green == blue), red, luma)[None]


def as_rgb(image: Float[Tensor, "C H W"]) -> Float[Tensor, "3 H W"]:
    """The image with three channels."""
    return image.expand(3, -1, -1)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image.

    Args:
        file: that it was read from.
        pixels: (C, H, W) in [0, 1].
    """

    file: Path
    pixels: Float[Tensor, "C H W"]


class DecodedImages(Dataset[Decoded | Unreadable]):
    """Images by their place in a list of files, decoded when they are asked for.

    Args:
        files: of the images.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Decoded | Unreadable:
        return decoded(self.files[index])


def decoded(file: Path) -> Decoded | Unreadable:
    """The image in a file, or what is wrong with it."""
    try:
        return Decoded(file, read_image(file))
    except FileNotFoundError as error:
        return Unreadable(str(error), missing=True)
    except ValueError as error:
        return Unreadable(str(error))


def _pixels(image: Image.Image) -> Tensor:
    if image.mode in _DEEP_GREY:
        return torch.from_numpy(np.asarray(image).astype(np.float32) / np.float32(65535))[None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    levels = np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
    values = levels.reshape(*levels.shape[:2], -1).transpose(2, 0, 1).astype(np.float32)
    return torch.from_numpy(values / np.float32(255))
