"""SOG version 1, read only: values between a least and a largest one in place of codebooks, no version in meta.json.

Source: the first published layout of SOG (PlayCanvas, 2025), which `version: 2` replaced.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32

from compress3d.splats.formats.checked_json import Json
from compress3d.splats.formats.sog_files import SogFiles
from compress3d.splats.formats.sog_textures import decode_means, decode_quats, gaussian_texels, palette_rows
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

_MOST_GAUSSIANS = 1 << 28
_COEFFICIENTS_BY_WIDTH = {64 * coefficients: coefficients for coefficients in SH_COEFFICIENTS.values() if coefficients}


def decode(files: SogFiles, meta: Json) -> SplatScene:
    """The scene of version-1 metadata.

    Raises:
        ValueError: a field or a texture is missing or out of range.
    """
    count = meta["means"]["shape"][0].integer(1, _MOST_GAUSSIANS)
    scales = gaussian_texels(files, meta["scales"]["files"][0], count)[:, :3]
    sh0 = gaussian_texels(files, meta["sh0"]["files"][0], count)
    sh0_values = _between(meta["sh0"], sh0)
    return SplatScene(
        means=torch.from_numpy(decode_means(files, meta["means"], count)),
        quats=torch.from_numpy(decode_quats(files, meta["quats"], count)),
        scales=torch.from_numpy(_between(meta["scales"], scales)),
        opacities=torch.from_numpy(sh0_values[:, 3].copy()),
        sh0=torch.from_numpy(sh0_values[:, None, :3].copy()),
        shN=torch.from_numpy(_decode_shN(files, meta, count)),
    )


def _between(field: Json, texels: np.ndarray) -> Float32[np.ndarray, "N channels"]:
    channels = texels.shape[1]
    low, high = (np.array(field[name].numbers(channels)) for name in ("mins", "maxs"))
    return (low + (high - low) * (texels / 255)).astype(np.float32)


def _decode_shN(files: SogFiles, meta: Json, count: int) -> Float32[np.ndarray, "N K 3"]:
    field = meta.get("shN")
    if field is None:
        return np.zeros((count, 0, 3), np.float32)
    name = field["files"][0]
    texels = files.texture(name, 64 * 3, 64 * 15 * 1024)
    coefficients = _COEFFICIENTS_BY_WIDTH.get(texels.shape[1])
    if coefficients is None:
        widths = ", ".join(map(str, _COEFFICIENTS_BY_WIDTH))
        raise ValueError(f"{name.where}: {name.text()!r} is {texels.shape[1]} texels wide, expected one of {widths}")
    low, high = field["mins"].number(), field["maxs"].number()
    palette = (low + (high - low) * (texels[..., :3].reshape(-1, coefficients, 3) / 255)).astype(np.float32)
    return palette[palette_rows(files, field["files"][1], count, len(palette))]
