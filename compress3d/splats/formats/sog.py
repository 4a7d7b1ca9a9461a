"""SOG, PlayCanvas' splats as images: read in versions 1 and 2, written in 2, bundled in one zip or as a folder.

Source: "The SOG Format", https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog. Coordinates are
those of a PLY (x right, y down, z front), as the format's own tools read and write them.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from compress3d.splats.formats import sog_v1
from compress3d.splats.formats.checked_json import Json
from compress3d.splats.formats.codebooks import nearest, scalar_codebook
from compress3d.splats.formats.harmonics import HarmonicsPalette, harmonics_palette, visibility
from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.quantization import alphas_from_opacities, opacities_from_bytes, to_levels
from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.formats.sog_files import META, SogFiles, replacing_sog
from compress3d.splats.formats.sog_textures import (
    decode_means,
    decode_quats,
    encode_quats,
    gaussian_texels,
    palette_rows,
)
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from secateur.files import replacing_file

_MOST_GAUSSIANS = 16380**2
"""Texels of the largest image that WebP allows, its sides being multiples of 4."""

_MOST_LABELS = 1 << 16
_PALETTE_COLUMNS = 64


def matches(path: Path, head: bytes) -> bool:
    """Whether `path` is a folder with a meta.json, a meta.json, or a zip archive that begins with `head`."""
    path = Path(path)
    if path.is_dir():
        return (path / META).is_file()
    return head[:4] == b"PK\x03\x04" or (path.name.lower() == META and head.lstrip()[:1] == b"{")


def read(path: Path) -> SplatScene:
    """Read SOG from a .sog archive, a folder, or the folder's meta.json.

    Raises:
        FileNotFoundError: there is no such file, or no meta.json in the folder.
        ValueError: a field or a texture is missing, damaged or out of range.
    """
    with SogFiles(Path(path)) as files:
        meta = files.meta()
        version = meta.get("version")
        if version is None:
            return sog_v1.decode(files, meta)
        if version.integer(1, 2**31) == 1:
            return sog_v1.decode(files, meta)
        if version.value != 2:
            raise ValueError(f"{version.where} is {version.value}, versions 1 and 2 are known")
        return _decode(files, meta)


def write(scene: SplatScene, path: Path, *, palette_size: int | None = None) -> None:
    """Write SOG version 2: one archive, or a folder if `path` is a meta.json or has no suffix.

    The Gaussians are reordered along a Morton curve. Positions keep 16 bits, rotations 8 bits a component, scales and
    colours an index into 256 optimal values each, opacities 8 bits, and the higher harmonics an index into a palette.
    The same scene gives the same bytes on the same machine. In a folder, the textures of the SOG that was there before
    are replaced or removed, and all else stays.

    Args:
        scene: N >= 1 Gaussians.
        path: "name.sog", a folder, or a meta.json inside one.
        palette_size: the most rows of the palette of higher harmonics, 1 to 65,536. None takes the size that the
            format's own tools take: 1024 times a power of two that grows with N.

    Raises:
        ValueError: the scene is empty or too large, or has Gaussians that cannot be rendered, or palette_size is out of
            its range.
    """
    path = Path(path)
    count = len(scene)
    if not 0 < count <= _MOST_GAUSSIANS:
        raise ValueError(f"{path}: SOG holds 1 to {_MOST_GAUSSIANS} Gaussians, the scene has {count}")
    palette_size = default_palette_size(count) if palette_size is None else palette_size
    if not 1 <= palette_size <= _MOST_LABELS:
        raise ValueError(f"{path}: palette_size must be 1 to {_MOST_LABELS}, got {palette_size}")
    require_valid(scene)
    meta, images = _encode(scene, palette_size)
    contents = {name: lossless_webp(image) for name, image in images.items()}
    contents[META] = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
    if path.suffix and path.name.lower() != META and not path.is_dir():
        with replacing_file(path) as temporary:
            write_archive(temporary, contents)
    else:
        with replacing_sog(path.parent if path.name.lower() == META else path) as folder:
            for name, data in contents.items():
                (folder / name).write_bytes(data)


def default_palette_size(count: int) -> int:
    """Rows of the palette of harmonics that the format's own tools take for `count` Gaussians."""
    return min(_MOST_LABELS, max(1024, 2 ** int(math.log2(max(count, 1024) / 1024)) * 1024))


def _decode(files: SogFiles, meta: Json) -> SplatScene:
    count = meta["count"].integer(1, _MOST_GAUSSIANS)
    scales = gaussian_texels(files, meta["scales"]["files"][0], count)[:, :3]
    sh0 = gaussian_texels(files, meta["sh0"]["files"][0], count)
    model, antialias = meta.get("model"), meta.get("antialias")
    return SplatScene(
        means=torch.from_numpy(decode_means(files, meta["means"], count)),
        quats=torch.from_numpy(decode_quats(files, meta["quats"], count)),
        scales=torch.from_numpy(looked_up(meta["scales"]["codebook"], scales)),
        opacities=torch.from_numpy(opacities_from_bytes(sh0[:, 3])),
        sh0=torch.from_numpy(looked_up(meta["sh0"]["codebook"], sh0[:, None, :3])),
        shN=torch.from_numpy(decode_shN(files, meta, count)),
        antialiased=(model is not None and model.value == "antialiased")
        or (antialias is not None and antialias.value is True),
    )


def looked_up(codebook: Json, indices: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """The values at `indices` of a codebook. Raises ValueError where it is no codebook, or ends before an index."""
    values = np.array(codebook.numbers(1, 256), np.float32)
    if indices.max() >= len(values):
        raise ValueError(f"{codebook.where} has {len(values)} values, the texture asks for number {indices.max()}")
    return values[indices]


def decode_shN(files: SogFiles, meta: Json, count: int) -> Float32[np.ndarray, "N K 3"]:
    """Higher harmonics of `count` Gaussians, as `encode_shN` packs them; none where the metadata names none."""
    field = meta.get("shN")
    degree = 0 if field is None else field["bands"].integer(0, 3)
    if field is None or degree == 0:
        return np.zeros((count, 0, 3), np.float32)
    coefficients = SH_COEFFICIENTS[degree]
    size = field["count"].integer(1, _MOST_LABELS)
    name = field["files"][0]
    columns, rows = _PALETTE_COLUMNS * coefficients, -(-size // _PALETTE_COLUMNS)
    texels = files.texture(name, columns * rows, columns * _MOST_LABELS // _PALETTE_COLUMNS)
    if texels.shape[1] != columns:
        raise ValueError(f"{name.where}: {name.text()!r} is {texels.shape[1]} wide, {degree} bands need {columns}")
    labels = palette_rows(files, field["files"][1], count, size)
    return looked_up(field["codebook"], texels[..., :3].reshape(-1, coefficients, 3))[labels]


def _encode(scene: SplatScene, palette_size: int) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "h w c"]]]:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in scene.tensors().items()}
    order = morton_order(arrays["means"])
    arrays = {name: array[order] for name, array in arrays.items()}
    low, high, lower, upper = _encode_means(arrays["means"])
    weights = visibility(arrays)
    scales = scalar_codebook(arrays["scales"].reshape(-1), weights=np.repeat(weights, 3))
    sh0 = scalar_codebook(arrays["sh0"].reshape(-1), weights=np.repeat(weights, 3))
    alphas = to_levels(alphas_from_opacities(arrays["opacities"]), 256).astype(np.uint8)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "secateur"},
        "count": len(scene),
        **({"model": "antialiased", "antialias": True} if scene.antialiased else {}),
        "means": {"mins": low, "maxs": high, "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": shortest(scales), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": shortest(sh0), "files": ["sh0.webp"]},
    }
    images = {
        "means_l.webp": _image(lower),
        "means_u.webp": _image(upper),
        "quats.webp": _image(encode_quats(arrays["quats"])),
        "scales.webp": _image(nearest(arrays["scales"], scales)),
        "sh0.webp": _image(np.concatenate([nearest(arrays["sh0"][:, 0], sh0), alphas[:, None]], axis=1)),
    }
    if scene.sh_degree:
        meta["shN"], shN_images = encode_shN(harmonics_palette(arrays["shN"], weights, palette_size))
        images.update(shN_images)
    return meta, images


def _encode_means(
    means: Float32[np.ndarray, "N 3"],
) -> tuple[list[float], list[float], UInt8[np.ndarray, "N 3"], UInt8[np.ndarray, "N 3"]]:
    logs = np.sign(means) * np.log1p(np.abs(means.astype(np.float64)))
    low, high = logs.min(axis=0), logs.max(axis=0)
    steps = np.rint((logs - low) * (65535 / np.where(high > low, high - low, 1))).astype(np.uint16)
    return low.tolist(), high.tolist(), (steps & 255).astype(np.uint8), (steps >> 8).astype(np.uint8)


def encode_shN(palette: HarmonicsPalette) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "h w c"]]]:
    """A palette of higher harmonics and each Gaussian's label: the entry of the metadata, and its two images."""
    count, coefficients = palette.indices.shape[:2]
    rows = -(-count // _PALETTE_COLUMNS)
    centroids = np.zeros((rows * _PALETTE_COLUMNS, coefficients, 3), np.uint8)
    centroids[:count] = palette.indices
    meta = {
        "count": count,
        "bands": {k: degree for degree, k in SH_COEFFICIENTS.items()}[coefficients],
        "codebook": shortest(palette.codebook),
        "files": ["shN_centroids.webp", "shN_labels.webp"],
    }
    labels = palette.labels
    label_bytes = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1).astype(np.uint8)
    return meta, {
        "shN_centroids.webp": centroids.reshape(rows, _PALETTE_COLUMNS * coefficients, 3),
        "shN_labels.webp": _image(label_bytes),
    }


def shortest(values: Float32[np.ndarray, " size"]) -> list[float]:
    """The same float32 values with the fewest digits."""
    return [float(str(value)) for value in values]


def _image(texels: UInt8[np.ndarray, "N channels"]) -> UInt8[np.ndarray, "h w channels"]:
    """Texels row by row in an almost square image with sides that are multiples of 4, zero where they run out."""
    count, channels = texels.shape
    width = math.ceil(math.sqrt(count) / 4) * 4
    height = math.ceil(count / width / 4) * 4
    image = np.zeros((height * width, channels), np.uint8)
    image[:count] = texels
    return image.reshape(height, width, channels)


def lossless_webp(image: UInt8[np.ndarray, "h w channels"]) -> bytes:
    """An image of 3 or 4 channels as a WebP file that gives every byte back."""
    buffer = io.BytesIO()
    # Without `exact` the encoder changes colours where alpha is 0. More effort than this gains less than 0.2 %.
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=75, method=4, exact=True)
    return buffer.getvalue()


def write_archive(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write files by name into a zip, the metadata first; the same contents give the same bytes."""
    # The images do not shrink further, and the fixed date of a bare ZipInfo makes equal scenes equal files.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in (META, *(name for name in contents if name != META)):
            archive.writestr(zipfile.ZipInfo(name), contents[name])
