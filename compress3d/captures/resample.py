"""Pixels at another size: 8-bit colours with straight alpha, averaged over areas with premultiplied alpha."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy.sparse import csr_array
from torch import Tensor


def premultiplied(pixels: UInt8[Tensor, "H W D"]) -> Float[Tensor, "H W D"]:
    """8-bit RGB or straight RGBA -> [0, 1], the colours times their alpha."""
    values = pixels.float() / 255
    return values if pixels.shape[2] == 3 else torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], dim=2)


def straight(values: Float[Tensor, "H W D"]) -> UInt8[Tensor, "H W D"]:
    """The inverse of `premultiplied`; where alpha is 0, the colour is black."""
    if values.shape[2] == 4:
        alpha = values[..., 3:]
        colours = torch.where(alpha > 0, values[..., :3] / alpha.clamp(min=1e-6), 0.0)
        values = torch.cat([colours, alpha], dim=2)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def area_average(image: Float[Tensor, "H W D"], width: int, height: int) -> Float[Tensor, "h w D"]:
    """The mean over the area that each new pixel covers, parts of old pixels counted by their part; never enlarges.

    Raises:
        ValueError: the new size is larger, or empty.
    """
    old_height, old_width, depth = image.shape
    if not (1 <= width <= old_width and 1 <= height <= old_height):
        raise ValueError(f"cannot average {old_width}x{old_height} pixels to {width}x{height}")
    rows = _weights(old_height, height) @ image.reshape(old_height, -1).numpy()
    columns = rows.reshape(height, old_width, depth).transpose(1, 0, 2).reshape(old_width, -1)
    averaged = (_weights(old_width, width) @ columns).reshape(width, height, depth).transpose(1, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(averaged))


def reduced_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) of which the longer is at most `long_side`.

    Raises:
        ValueError: long_side is not positive.
    """
    if long_side < 1:
        raise ValueError(f"long_side must be at least 1 pixel, got {long_side}")
    factor = min(1.0, long_side / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


@lru_cache(maxsize=8)
def _weights(old: int, new: int) -> csr_array:
    """(new, old) share of each old pixel in each new one; rows sum to 1."""
    step = old / new
    starts = np.arange(new) * step
    reach = int(np.ceil(step)) + 1
    columns = np.floor(starts).astype(np.int64)[:, None] + np.arange(reach)
    overlaps = np.minimum(columns + 1, (starts + step)[:, None]) - np.maximum(columns, starts[:, None])
    shares = np.where(columns < old, np.maximum(overlaps, 0), 0) / step
    rows = np.broadcast_to(np.arange(new)[:, None], columns.shape)
    entries = (shares.ravel().astype(np.float32), (rows.ravel(), np.minimum(columns, old - 1).ravel()))
    return csr_array(entries, shape=(new, old))
