"""The scene in a page: 17 bytes a Gaussian in planes, deflated. What `decode.js` reads.

Each plane is one byte of all Gaussians, in Z-order, so that neighbours are alike and deflate finds it:

- 6 planes, the high bytes of x, y, z, then the low bytes: sign(u) log(1 + |u|) of u = (mean - centre) / unit, in 65535
  steps from `low` to `high`, axis by axis, so that floaters far away do not cost the middle its precision;
- 3 planes: log scales, in 255 steps from `scale_low` to `scale_high`; what is smaller takes `scale_low`, e^-16 of the
  largest;
- 4 planes: three components of the rotation (w, x, y, z), the largest left out, in 254 steps from -sqrt(1/2) to
  sqrt(1/2), 127 for 0, and which one is missing, 0 to 3;
- 4 planes: red, green, blue of degree 0 in 255 steps from 0 to `colour_high`, and the opacity in 255 steps.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, UInt8

from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.quantization import (
    alphas_from_opacities,
    colors_from_sh0,
    opacities_from_bytes,
    sh0_from_colors,
    to_levels,
)
from compress3d.splats.formats.smallest_three import LARGEST_OTHER, leave_out_largest, restore_largest
from compress3d.splats.scene import SplatScene

PLANES = 17
"""Bytes of a Gaussian before they are deflated."""

_STEPS = 65535
_SCALE_RANGE = 16.0
_MOST_COLOUR = 4.0
_LARGEST_COUNT = 1 << 26


@dataclass(frozen=True, slots=True)
class Ranges:
    """What the bytes of a packed scene stand for.

    Args:
        count: Gaussians.
        antialiased: as in `SplatScene`.
        centre: (3,) world units.
        unit: world units.
        low, high: (3,) ends of the positions' logarithms.
        scale_low, scale_high: ends of the log scales.
        colour_high: the colour of byte 255.
    """

    count: int
    antialiased: bool
    centre: tuple[float, ...]
    unit: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale_low: float
    scale_high: float
    colour_high: float

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """From what `to_json` gives; raises ValueError for fields that are missing, of other kinds or not finite."""
        try:
            triples = [tuple(float(value) for value in record[name]) for name in ("centre", "low", "high")]
            numbers = [float(record[name]) for name in ("unit", "scale_low", "scale_high", "colour_high")]
            count, antialiased = int(record["count"]), bool(record["antialiased"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the ranges of a packed scene are damaged: {error!r}") from error
        flat = [*(value for triple in triples for value in triple), *numbers]
        if any(len(triple) != 3 for triple in triples) or not np.isfinite(flat).all():
            raise ValueError("the ranges of a packed scene are damaged: three finite numbers an axis are expected")
        if not 0 < count <= _LARGEST_COUNT:
            raise ValueError(f"a packed scene of {count} Gaussians; 1 to {_LARGEST_COUNT} are expected")
        centre, low, high = triples
        unit, scale_low, scale_high, colour_high = numbers
        return cls(count, antialiased, centre, unit, low, high, scale_low, scale_high, colour_high)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def pack(scene: SplatScene) -> tuple[Ranges, bytes]:
    """A scene of at least one Gaussian, all of which can be rendered, as ranges and deflated planes.

    The order becomes Z-order; spherical harmonics above degree 0 are left out.
    """
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in scene.tensors().items()}
    means = arrays["means"].astype(np.float64)
    centre = np.median(means, axis=0)
    unit = max(float(np.median(np.linalg.norm(means - centre, axis=1))), 1e-9)
    offsets = (means - centre) / unit
    logs = np.sign(offsets) * np.log1p(np.abs(offsets))
    low, high = logs.min(axis=0), logs.max(axis=0)
    scale_high = float(arrays["scales"].max())
    scale_low = max(float(arrays["scales"].min()), scale_high - _SCALE_RANGE)
    colours = colors_from_sh0(arrays["sh0"][:, 0])
    ranges = Ranges(
        count=len(scene),
        antialiased=scene.antialiased,
        centre=tuple(centre.tolist()),
        unit=unit,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        scale_low=scale_low,
        scale_high=scale_high,
        colour_high=float(np.clip(colours.max(), 1.0, _MOST_COLOUR)),
    )
    order = morton_order(logs.astype(np.float32))
    planes = np.concatenate(
        [
            _position_planes((logs - low) / np.where(high > low, high - low, 1)),
            to_levels((arrays["scales"] - scale_low) / max(scale_high - scale_low, 1e-12), 256),
            _rotation_planes(arrays["quats"]),
            to_levels(colours / ranges.colour_high, 256),
            to_levels(alphas_from_opacities(arrays["opacities"]), 256)[:, None],
        ],
        axis=1,
    ).astype(np.uint8)
    return ranges, zlib.compress(np.ascontiguousarray(planes[order].T).tobytes(), 9)


def unpack(ranges: Ranges, data: bytes) -> SplatScene:
    """The scene of degree 0 that was packed, in Z-order.

    Raises:
        ValueError: the data is damaged, or of another length than the count asks for.
    """
    size = PLANES * ranges.count
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the packed scene is damaged: {error}") from error
    if len(raw) != size:
        found = f"{len(raw):,}" if len(raw) < size else "more"
        raise ValueError(f"the packed scene has {found} bytes, {size:,} are expected of {ranges.count:,} Gaussians")
    planes = np.frombuffer(raw, np.uint8).reshape(PLANES, ranges.count).T
    low, high = np.array(ranges.low), np.array(ranges.high)
    logs = low + (planes[:, :3] * 256.0 + planes[:, 3:6]) * ((high - low) / _STEPS)
    means = np.array(ranges.centre) + ranges.unit * np.sign(logs) * np.expm1(np.abs(logs))
    scales = ranges.scale_low + planes[:, 6:9] * ((ranges.scale_high - ranges.scale_low) / 255)
    others = (planes[:, 9:12].astype(np.float32) - 127) * np.float32(LARGEST_OTHER / 127)
    colours = planes[:, 13:16] * (ranges.colour_high / 255)
    return SplatScene(
        means=torch.from_numpy(means.astype(np.float32)),
        quats=torch.from_numpy(restore_largest(others, planes[:, 12] & 3)),
        scales=torch.from_numpy(scales.astype(np.float32)),
        opacities=torch.from_numpy(opacities_from_bytes(planes[:, 16])),
        sh0=torch.from_numpy(sh0_from_colors(colours)[:, None]),
        shN=torch.zeros(ranges.count, 0, 3),
        antialiased=ranges.antialiased,
    )


def _position_planes(places: Float[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 6"]:
    steps = to_levels(places, _STEPS + 1)
    return np.concatenate([steps >> 8, steps & 255], axis=1)


def _rotation_planes(quats: Float[np.ndarray, "N 4"]) -> UInt8[np.ndarray, "N 4"]:
    others, missing = leave_out_largest(quats)
    levels = np.clip(np.rint(others * (127 / LARGEST_OTHER)) + 127, 0, 254)
    return np.concatenate([levels, missing[:, None]], axis=1)
