"""What both versions of SOG keep in the same way: positions, rotations, and labels into a palette of harmonics.

Source: "The SOG Format", https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog, section 3.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from compress3d.splats.formats.checked_json import Json
from compress3d.splats.formats.quantization import to_levels
from compress3d.splats.formats.smallest_three import LARGEST_OTHER, leave_out_largest, restore_largest
from compress3d.splats.formats.sog_files import SogFiles

FIRST_TAG = 252
"""Alpha of a rotation's texel, plus the index (w, x, y, z) of the component that is left out."""


def gaussian_texels(files: SogFiles, name: Json, count: int) -> UInt8[np.ndarray, "N 4"]:
    """One texel for each of `count` Gaussians; padding to a rectangle, or to a power of two, is cut off."""
    return files.texture(name, count, 4 * count + 65536).reshape(-1, 4)[:count]


def decode_means(files: SogFiles, field: Json, count: int) -> Float32[np.ndarray, "N 3"]:
    """Positions: 16 bits between the least and largest value of sign(x) ln(1 + |x|)."""
    low, high = (np.array(field[name].numbers(3)) for name in ("mins", "maxs"))
    for name in ("mins", "maxs"):
        if max(map(abs, field[name].numbers(3))) > 88:
            raise ValueError(f"{field[name].where} must be logarithms of float32 positions, at most 88")
    lower, upper = (gaussian_texels(files, field["files"][i], count)[:, :3] for i in range(2))
    logs = low + (high - low) * ((lower.astype(np.uint16) | upper.astype(np.uint16) << 8) / 65535)
    return (np.sign(logs) * np.expm1(np.abs(logs))).astype(np.float32)


def encode_quats(quats: Float32[np.ndarray, "N 4"]) -> UInt8[np.ndarray, "N 4"]:
    """Texels of rotations (w, x, y, z): the three smaller components as bytes, and a tag for the largest."""
    others, left_out = leave_out_largest(quats)
    codes = to_levels(others * np.float32(0.5 / LARGEST_OTHER) + np.float32(0.5), 256)
    return np.concatenate([codes, left_out[:, None] + FIRST_TAG], axis=1).astype(np.uint8)


def quats_from_texels(texels: UInt8[np.ndarray, "N 4"]) -> Float32[np.ndarray, "N 4"]:
    """Rotations (w, x, y, z) of their texels; an unknown tag stands for no rotation."""
    others = (texels[:, :3].astype(np.float32) / 255 - 0.5) * np.float32(2 * LARGEST_OTHER)
    left_out = texels[:, 3].astype(np.int64) - FIRST_TAG
    quats = restore_largest(others, np.maximum(left_out, 0))
    return np.where(left_out[:, None] >= 0, quats, np.array([1, 0, 0, 0], np.float32))


def decode_quats(files: SogFiles, field: Json, count: int) -> Float32[np.ndarray, "N 4"]:
    """Rotations (w, x, y, z) of the texture that a field names."""
    return quats_from_texels(gaussian_texels(files, field["files"][0], count))


def palette_rows(files: SogFiles, name: Json, count: int, size: int) -> Int64[np.ndarray, " N"]:
    """The palette entry of each Gaussian, 16 bits; `size` is the palette's."""
    texels = gaussian_texels(files, name, count)
    labels = texels[:, 0].astype(np.int64) | texels[:, 1].astype(np.int64) << 8
    if labels.max() >= size:
        raise ValueError(f"{name.where}: {name.text()!r} has label {labels.max()}, the palette ends at {size - 1}")
    return labels
