"""Z-order: neighbours in space become neighbours in the file, which is what chunked and image formats compress well."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

_BITS = 21


def morton_order(points: Float32[np.ndarray, "N 3"]) -> Int64[np.ndarray, " N"]:
    """The order that sorts points along a Z-order curve over their bounds, 21 bits an axis; ties keep their order.

    Source: G. M. Morton 1966, "A Computer Oriented Geodetic Data Base".
    """
    if not len(points):
        return np.empty(0, np.int64)
    low = points.min(axis=0).astype(np.float64)
    extent = points.max(axis=0) - low
    cells = (points - low) * ((2**_BITS - 1) / np.where(extent > 0, extent, 1))
    x, y, z = (_spread(cells[:, axis].astype(np.uint64)) for axis in range(3))
    return np.argsort(x | (y << np.uint64(1)) | (z << np.uint64(2)), kind="stable")


def _spread(cells: np.ndarray) -> np.ndarray:
    """Move bit i of each 21-bit number to bit 3i."""
    steps = (32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F)
    for shift, mask in (*steps, (4, 0x10C30C30C30C30C3), (2, 0x1249249249249249)):
        cells = (cells | (cells << np.uint64(shift))) & np.uint64(mask)
    return cells
