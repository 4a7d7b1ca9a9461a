"""Pictures as text that a page can hold, and heat maps of errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.report.page import Errors, Image

_SCALES = (8, 16, 32, 64, 128, 255)
_ICON = 96


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pictures are stored.

    Args:
        quality: of WebP, 0 to 100.
        share: of the width and height that is kept.
    """

    quality: int
    share: float


ENCODINGS = (Encoding(90, 1.0), Encoding(75, 1.0), Encoding(65, 0.7), Encoding(55, 0.5), Encoding(45, 0.35))
"""From the best to the smallest that is still worth looking at."""


def data_uri(image: Image, encoding: Encoding = ENCODINGS[0]) -> str:
    """A WebP data URI of an (H, W, 3) picture."""
    from PIL import Image as Pictures

    picture = Pictures.fromarray(image)
    if encoding.share < 1.0:
        size = (max(1, round(encoding.share * side)) for side in picture.size)
        picture = picture.resize((next(size), next(size)), Pictures.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=encoding.quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def icon(image: Image) -> str:
    """A square from the middle of a picture as a small WebP data URI."""
    from PIL import Image as Pictures

    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Pictures.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return data_uri(np.asarray(square.resize((_ICON, _ICON), Pictures.Resampling.LANCZOS)), Encoding(70, 1.0))


def error_scale(errors: Sequence[Errors]) -> int:
    """The end of a colour scale, in levels of 255, that fits all but the worst hundredth of the pixels."""
    worst = max((float(np.quantile(one, 0.99)) for one in errors), default=0.0)
    return next((scale for scale in _SCALES if worst <= scale), _SCALES[-1])


def heat_map(errors: Errors, scale: int) -> Image:
    """Errors from 0 (black) over violet and orange to `scale` levels and more (pale yellow)."""
    index = np.clip(errors * (255.0 / scale) + 0.5, 0, 255).astype(np.uint8)
    return np.asarray(_palette()[index])


def palette_stops(count: int = 9) -> list[str]:
    """Evenly spaced colours of the heat map, for a colour bar."""
    chosen = _palette()[np.linspace(0, 255, count).round().astype(int)]
    return [f"rgb({red} {green} {blue})" for red, green, blue in chosen.tolist()]


def _palette() -> NDArray[np.uint8]:
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.arange(256), bytes=True)[:, :3], np.uint8)
