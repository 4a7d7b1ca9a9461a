"""One image file, from a stranger: its size before its pixels, and one ValueError for whatever is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""How the images that can be read end, in either case."""

_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) by the header alone.

    Raises:
        ValueError: not an image, or of more pixels than Pillow takes for safe.
    """
    with _opened(path) as image:
        return image.size


def read_image(path: Path, size: tuple[int, int]) -> UInt8[Tensor, "H W D"]:
    """RGB, or straight RGBA where the file has any transparency; pixels as stored, whatever EXIF says of turning them.

    Args:
        path: the file.
        size: (width, height) that it must have.

    Raises:
        ValueError: not an image of 8 bits a channel, damaged, of another size, or larger than Pillow takes for safe.
    """
    with _opened(path) as image:
        if image.size != size:
            raise ValueError(f"{path}: the image has {image.size} pixels, expected {size}")
        if image.mode not in _MODES:
            raise ValueError(f"{path}: the image's mode is {image.mode}; expected 8 bits of grey, RGB or RGBA")
        has_alpha = image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
        return torch.from_numpy(np.array(image.convert("RGBA" if has_alpha else "RGB")))


def read_mask(path: Path, size: tuple[int, int]) -> UInt8[Tensor, "H W 1"]:
    """A mask's brightness: 0 where pixels are to be ignored.

    Raises:
        ValueError: as `read_image` does.
    """
    return read_image(path, size)[..., :3].amax(dim=2, keepdim=True)


def is_image(path: Path) -> bool:
    """Whether there is a file of that name (and not a folder, a pipe or a name that no file can have)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
    # Pillow's decoders raise anything from SyntaxError to struct.error on damaged files.
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path}: the image cannot be read: {error}") from error
