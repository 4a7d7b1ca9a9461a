"""Pictures as text that a page can hold, and heat maps of errors."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secateur.report.page import Errors, Image

_QUALITY = 90
_SCALES = (8, 16, 32, 64, 128, 255)


def data_uri(image: Image) -> str:
    """A WebP data URI of an (H, W, 3) picture."""
    from PIL import Image as Pictures

    file = io.BytesIO()
    Pictures.fromarray(image).save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


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
