"""antimatter15's `.splat`: 32 bytes a Gaussian and no header, the most important first; no spherical harmonics.

Source: README and convert.py of antimatter15/splat. A record is position (3 float), linear scale (3 float), red, green,
blue, alpha (4 bytes), and the normalised rotation (w, x, y, z) as bytes about 128.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from compress3d.splats.formats.quantization import (
    alphas_from_opacities,
    colors_from_sh0,
    log_scales,
    opacities_from_bytes,
    sh0_from_colors,
    to_levels,
)
from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.scene import SplatScene
from secateur.files import replacing_file

_RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])

logger = logging.getLogger("secateur")


def matches(path: Path, head: bytes) -> bool:
    """Whether the file is named `.splat`: it has no header to know it by."""
    return path.suffix.lower() == ".splat"


def read(path: Path) -> SplatScene:
    """Read a `.splat` as a scene of degree 0; an axis of scale 0 gets FLAT_LOG_SCALE.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the size is not a positive multiple of 32 bytes.
    """
    size = path.stat().st_size
    if not size or size % _RECORD.itemsize:
        raise ValueError(f"{path}: file size is {size} bytes; a .splat is a positive multiple of {_RECORD.itemsize}")
    records = np.fromfile(path, _RECORD)
    return SplatScene(
        means=torch.from_numpy(records["position"].astype(np.float32)),
        quats=torch.from_numpy((records["rotation"].astype(np.float32) - 128) / 128),
        scales=torch.from_numpy(log_scales(records["scale"])),
        opacities=torch.from_numpy(opacities_from_bytes(records["color"][:, 3])),
        sh0=torch.from_numpy(sh0_from_colors(records["color"][:, None, :3].astype(np.float32) / 255)),
        shN=torch.zeros(len(records), 0, 3),
    )


def write(scene: SplatScene, path: Path) -> None:
    """Write a `.splat`, sorted by volume times opacity, the largest first.

    Colours are clamped to the gamut. Spherical harmonics above degree 0 are left out, with a warning.

    Raises:
        ValueError: a Gaussian cannot be rendered.
    """
    require_valid(scene)
    if scene.sh_degree:
        logger.warning("%s: .splat holds no spherical harmonics above degree 0; they are left out", path)
    means, quats, scales, opacities, sh0, _ = (tensor.detach().cpu().numpy() for tensor in scene.tensors().values())
    alphas = alphas_from_opacities(opacities)
    with np.errstate(over="ignore"):
        order = np.argsort(-np.exp(scales.sum(axis=1)) * alphas, kind="stable")
    colors = np.concatenate([colors_from_sh0(sh0[:, 0]), alphas[:, None]], axis=1)
    rotations = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    records = np.empty(len(scene), _RECORD)
    records["position"], records["scale"] = means, np.exp(scales)
    records["color"] = to_levels(colors, 256)
    records["rotation"] = np.clip(np.round(rotations * 128) + 128, 0, 255)
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write(records[order].tobytes())
