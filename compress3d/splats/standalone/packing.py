"""The scene in a page: 17 to 19 bytes a Gaussian in planes, deflated. What `decode.js` reads.

Each plane is one byte of all Gaussians, in Z-order, so that neighbours are alike and deflate finds it:

- 6 planes, the high bytes of x, y, z, then the low bytes: sign(u) log(1 + |u|) of u = (mean - centre) / unit, in 65535
  steps from `low` to `high`, axis by axis, so that floaters far away do not cost the middle its precision;
- 3 planes: log scales, in 255 steps from `scale_low` to `scale_high`; what is smaller takes `scale_low`, e^-16 of the
  largest;
- 4 planes: three components of the rotation (w, x, y, z), the largest left out, in 254 steps from -sqrt(1/2) to
  sqrt(1/2), 127 for 0, and which one is missing, 0 to 3;
- 4 planes: red, green, blue of degree 0 in 255 steps from `colour_low` to `colour_high`, and the opacity in 255 steps.

Where there are harmonics above degree 0, a palette follows (`HarmonicsPalette`):

- 2 planes: the low, then the high byte of the entry that each Gaussian has;
- 3 K planes of one byte of each entry: red, green, blue of the first of the K coefficients, of the second, and so on.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from compress3d.splats.formats.harmonics import HarmonicsPalette, harmonics_palette, visibility
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.quantization import (
    alphas_from_opacities,
    colors_from_sh0,
    opacities_from_bytes,
    sh0_from_colors,
    to_levels,
)
from compress3d.splats.formats.smallest_three import LARGEST_OTHER, leave_out_largest, restore_largest
from compress3d.splats.formats.sog import shortest
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

PLANES = 17
"""Bytes of a Gaussian before they are deflated."""

_STEPS = 65535
_SCALE_RANGE = 16.0
_LEAST_COLOUR, _MOST_COLOUR = -1.0, 4.0
_LARGEST_COUNT = 1 << 26
_MOST_ENTRIES = 1 << 16
GAUSSIANS_PER_ENTRY = 8
"""On a scan of degree 2: 43 dB against the whole scene for 1.36 times the bytes of degree 0, which has 31 dB."""


@dataclass(frozen=True, slots=True)
class Harmonics:
    """What the bytes of harmonics stand for.

    Args:
        degree: 1 to 3.
        entries: of the palette.
        codebook: 256 values at most, which the palette's bytes name.
    """

    degree: int
    entries: int
    codebook: tuple[float, ...]

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """From what `asdict` gives; raises ValueError for fields that are missing, of other kinds or out of range."""
        try:
            degree, entries = int(record["degree"]), int(record["entries"])
            codebook = tuple(float(value) for value in record["codebook"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the harmonics of a packed scene are damaged: {error!r}") from error
        if degree not in (1, 2, 3) or not 0 < entries <= _MOST_ENTRIES:
            raise ValueError(f"harmonics of degree {degree} in {entries} entries; 1 to 3 in at most {_MOST_ENTRIES}")
        if not 0 < len(codebook) <= 256 or not np.isfinite(codebook).all():
            raise ValueError("the harmonics of a packed scene are damaged: 1 to 256 finite values are expected")
        return cls(degree, entries, codebook)

    @property
    def coefficients(self) -> int:
        """Of each channel."""
        return SH_COEFFICIENTS[self.degree]

    def bytes(self, count: int) -> int:
        """Of `count` Gaussians' harmonics, before they are deflated."""
        return 2 * count + 3 * self.coefficients * self.entries


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
        colour_low, colour_high: the colours of bytes 0 and 255.
        harmonics: above degree 0; None: there are none.
    """

    count: int
    antialiased: bool
    centre: tuple[float, ...]
    unit: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    scale_low: float
    scale_high: float
    colour_low: float
    colour_high: float
    harmonics: Harmonics | None

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """From what `to_json` gives; raises ValueError for fields that are missing, of other kinds or not finite."""
        try:
            triples = [tuple(float(value) for value in record[name]) for name in ("centre", "low", "high")]
            numbers = [float(record[name]) for name in ("unit", "scale_low", "scale_high", "colour_low", "colour_high")]
            count, antialiased = int(record["count"]), bool(record["antialiased"])
            harmonics = record["harmonics"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the ranges of a packed scene are damaged: {error!r}") from error
        flat = [*(value for triple in triples for value in triple), *numbers]
        if any(len(triple) != 3 for triple in triples) or not np.isfinite(flat).all():
            raise ValueError("the ranges of a packed scene are damaged: three finite numbers an axis are expected")
        if not 0 < count <= _LARGEST_COUNT:
            raise ValueError(f"a packed scene of {count} Gaussians; 1 to {_LARGEST_COUNT} are expected")
        centre, low, high = triples
        found = None if harmonics is None else Harmonics.from_json(harmonics)
        unit, scale_low, scale_high, colour_low, colour_high = numbers
        return cls(count, antialiased, centre, unit, low, high, scale_low, scale_high, colour_low, colour_high, found)

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @property
    def bytes(self) -> int:
        """Of the planes, before they are deflated."""
        return PLANES * self.count + (self.harmonics.bytes(self.count) if self.harmonics else 0)


def pack(scene: SplatScene, entries: int | None = None) -> tuple[Ranges, bytes]:
    """A scene of at least one Gaussian, all of which can be rendered, as ranges and deflated planes.

    The order becomes Z-order; spherical harmonics above degree 0 become a palette of at most `entries` sets, by default
    one for `GAUSSIANS_PER_ENTRY` Gaussians.
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
    palette = _palette(arrays, entries) if scene.sh_degree else None
    # Without harmonics nobody sees how far below 0 a colour is.
    colour_low = float(np.clip(colours.min(), _LEAST_COLOUR, 0)) if palette else 0.0
    colour_high = float(np.clip(colours.max(), 1.0, _MOST_COLOUR))
    ranges = Ranges(
        count=len(scene),
        antialiased=scene.antialiased,
        centre=tuple(centre.tolist()),
        unit=unit,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        scale_low=scale_low,
        scale_high=scale_high,
        colour_low=colour_low,
        colour_high=colour_high,
        harmonics=None
        if palette is None
        else Harmonics(scene.sh_degree, len(palette.indices), tuple(shortest(palette.codebook))),
    )
    order = morton_order(logs.astype(np.float32))
    planes = np.concatenate(
        [
            _position_planes((logs - low) / np.where(high > low, high - low, 1)),
            to_levels((arrays["scales"] - scale_low) / max(scale_high - scale_low, 1e-12), 256),
            _rotation_planes(arrays["quats"]),
            to_levels((colours - colour_low) / (colour_high - colour_low), 256),
            to_levels(alphas_from_opacities(arrays["opacities"]), 256)[:, None],
        ],
        axis=1,
    ).astype(np.uint8)
    data = np.ascontiguousarray(planes[order].T).tobytes()
    if palette is not None:
        data += palette.labels[order].astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
        data += palette.indices.reshape(len(palette.indices), -1).T.tobytes()
    return ranges, zlib.compress(data, 9)


def _palette(arrays: Mapping[str, np.ndarray], entries: int | None) -> HarmonicsPalette:
    size = max(len(arrays["shN"]) // GAUSSIANS_PER_ENTRY, 1024) if entries is None else entries
    return harmonics_palette(arrays["shN"], visibility(arrays), min(size, _MOST_ENTRIES))


def unpack(ranges: Ranges, data: bytes) -> SplatScene:
    """The scene that was packed, in Z-order.

    Raises:
        ValueError: the data is damaged, or of another length than the count asks for.
    """
    size = ranges.bytes
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the packed scene is damaged: {error}") from error
    if len(raw) != size:
        found = f"{len(raw):,}" if len(raw) < size else "more"
        raise ValueError(f"the packed scene has {found} bytes, {size:,} are expected of {ranges.count:,} Gaussians")
    planes = np.frombuffer(raw, np.uint8, PLANES * ranges.count).reshape(PLANES, ranges.count).T
    low, high = np.array(ranges.low), np.array(ranges.high)
    logs = low + (planes[:, :3] * 256.0 + planes[:, 3:6]) * ((high - low) / _STEPS)
    means = np.array(ranges.centre) + ranges.unit * np.sign(logs) * np.expm1(np.abs(logs))
    scales = ranges.scale_low + planes[:, 6:9] * ((ranges.scale_high - ranges.scale_low) / 255)
    others = (planes[:, 9:12].astype(np.float32) - 127) * np.float32(LARGEST_OTHER / 127)
    colours = ranges.colour_low + planes[:, 13:16] * ((ranges.colour_high - ranges.colour_low) / 255)
    return SplatScene(
        means=torch.from_numpy(means.astype(np.float32)),
        quats=torch.from_numpy(restore_largest(others, planes[:, 12] & 3)),
        scales=torch.from_numpy(scales.astype(np.float32)),
        opacities=torch.from_numpy(opacities_from_bytes(planes[:, 16])),
        sh0=torch.from_numpy(sh0_from_colors(colours)[:, None]),
        shN=torch.from_numpy(_harmonics(ranges, np.frombuffer(raw, np.uint8, offset=PLANES * ranges.count))),
        antialiased=ranges.antialiased,
    )


def _harmonics(ranges: Ranges, data: UInt8[np.ndarray, " bytes"]) -> Float32[np.ndarray, "N K 3"]:
    """Those above degree 0 of each Gaussian. Raises ValueError where a byte names what is not there."""
    found, count = ranges.harmonics, ranges.count
    if found is None:
        return np.zeros((count, 0, 3), np.float32)
    labels = data[:count] | data[count : 2 * count].astype(np.int64) << 8
    indices = data[2 * count :].reshape(3 * found.coefficients, found.entries).T
    if labels.max() >= found.entries or indices.max() >= len(found.codebook):
        raise ValueError(
            f"the packed scene names entry {labels.max()} of {found.entries}, and value {indices.max()} of a codebook "
            f"of {len(found.codebook)}"
        )
    values = np.array(found.codebook, np.float32)
    return values[indices].reshape(-1, found.coefficients, 3)[labels]


def _position_planes(places: Float[np.ndarray, "N 3"]) -> UInt8[np.ndarray, "N 6"]:
    steps = to_levels(places, _STEPS + 1)
    return np.concatenate([steps >> 8, steps & 255], axis=1)


def _rotation_planes(quats: Float[np.ndarray, "N 4"]) -> UInt8[np.ndarray, "N 4"]:
    others, missing = leave_out_largest(quats)
    levels = np.clip(np.rint(others * (127 / LARGEST_OTHER)) + 127, 0, 254)
    return np.concatenate([levels, missing[:, None]], axis=1)
