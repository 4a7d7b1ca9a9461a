"""Baked scenes as files: one zip with a JSON header and the maps as lossless WebP, layers one below the other.

The numbers are coded as SOG codes them, with its reader's suspicion. A texel of `offsets.webp` holds the offsets along
u and across it in a byte each, and that out of the surface in two, low and high. `scales.webp` and `sh0.webp` hold
indices into codebooks, and opacities; `quats.webp` the smallest three, its tag is 0 where no Gaussian is. Labels of
higher harmonics, which mean nothing between texels, are packed as SOG's are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8

from compress3d.splats.baking.maps import BakedScene
from compress3d.splats.baking.surfaces import MeshSurface, Sphere, Surface
from compress3d.splats.formats.checked_json import Json
from compress3d.splats.formats.codebooks import nearest, scalar_codebook
from compress3d.splats.formats.harmonics import harmonics_palette, visibility
from compress3d.splats.formats.quantization import alphas_from_opacities, opacities_from_bytes, to_levels
from compress3d.splats.formats.sog import (
    decode_shN,
    default_palette_size,
    encode_shN,
    looked_up,
    lossless_webp,
    shortest,
    write_archive,
)
from compress3d.splats.formats.sog_files import META, MOST_META_BYTES, SogFiles
from compress3d.splats.formats.sog_textures import FIRST_TAG, encode_quats, quats_from_texels
from compress3d.splats.scene import SplatScene
from secateur.files import replacing_file

_FORMAT = "secateur baked splats"
_LEVELS = np.array([255, 255, 65535])
_MOST_SIDE = 16380
_TEXELS_A_BYTE = 64
"""Empty texels cost a file next to nothing, so it may claim only so many a byte of its own."""


def write_baked(baked: BakedScene, path: str | os.PathLike[str], *, palette_size: int | None = None) -> int:
    """Write all that is needed to decode a baked scene. The same scene gives the same bytes on the same machine.

    Args:
        baked: its maps, one below the other, at most 16,380 texels high and wide.
        path: the file, which is replaced whole.
        palette_size: the most rows of the palette of higher harmonics; None takes what SOG takes.

    Returns:
        The bytes of the file.

    Raises:
        ValueError: the maps are too large, for the format or for the few Gaussians on them; or the mesh is.
    """
    path = Path(path)
    layers, height, width = baked.mask.shape
    if layers * height > _MOST_SIDE or width > _MOST_SIDE:
        raise ValueError(f"{path}: {layers} layers of {height}x{width} texels are more than {_MOST_SIDE} high or wide")
    meta, images = _encode(baked, palette_size or default_palette_size(len(baked.texels)))
    contents = {name: lossless_webp(image) for name, image in images.items()}
    contents[META] = json.dumps(meta, separators=(",", ":"), allow_nan=False).encode()
    if len(contents[META]) > MOST_META_BYTES:
        raise ValueError(f"{path}: the mesh makes a header of more than {MOST_META_BYTES} bytes")
    with replacing_file(path) as temporary:
        write_archive(temporary, contents)
        size = temporary.stat().st_size
        if layers * height * width > _TEXELS_A_BYTE * size:
            raise ValueError(f"{path}: {baked.mask.numel()} texels are too many for {len(baked.texels)} Gaussians")
    return size


def read_baked(path: str | os.PathLike[str]) -> BakedScene:
    """The baked scene that `write_baked` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, of another version, or damaged; names the file and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with SogFiles(path) as files:
        meta = files.meta()
        if (meta["format"].value, meta["version"].value) != (_FORMAT, 1):
            raise ValueError(f"{meta.where}: not {_FORMAT} of version 1")
        layers, height, width = (meta["resolution"][i].integer(1, _MOST_SIDE) for i in range(3))
        if layers * height * width > _TEXELS_A_BYTE * path.stat().st_size:
            raise ValueError(f"{meta['resolution'].where}: {layers}x{height}x{width} texels are too many for the file")
        return _decode(files, meta, (layers, height, width))


def _encode(baked: BakedScene, palette_size: int) -> tuple[dict[str, Any], dict[str, UInt8[np.ndarray, "h w c"]]]:
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in baked.texels.tensors().items()}
    weights = visibility(arrays)
    scales, sh0 = (
        scalar_codebook(arrays[name].reshape(-1), weights=np.repeat(weights, 3)) for name in ("scales", "sh0")
    )
    alphas = to_levels(alphas_from_opacities(arrays["opacities"]), 256).astype(np.uint8)
    low, high, offsets = _encode_offsets(arrays["means"])
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "version": 1,
        "resolution": list(baked.mask.shape),
        "count": len(weights),
        "merged": baked.merged,
        "antialiased": baked.texels.antialiased,
        "surface": _described(baked.surface),
        "offsets": {"mins": low, "maxs": high, "file": "offsets.webp"},
        "quats": {"file": "quats.webp"},
        "scales": {"codebook": shortest(scales), "file": "scales.webp"},
        "sh0": {"codebook": shortest(sh0), "file": "sh0.webp"},
    }
    texels = {
        "offsets.webp": offsets,
        "quats.webp": encode_quats(arrays["quats"]),
        "scales.webp": nearest(arrays["scales"], scales),
        "sh0.webp": np.concatenate([nearest(arrays["sh0"][:, 0], sh0), alphas[:, None]], axis=1),
    }
    images = {name: _laid_out(rows, baked.mask.numpy()) for name, rows in texels.items()}
    if baked.texels.sh_degree:
        meta["shN"], palette = encode_shN(harmonics_palette(arrays["shN"], weights, palette_size))
        images |= palette
    return meta, images


def _decode(files: SogFiles, meta: Json, shape: tuple[int, int, int]) -> BakedScene:
    mask = _map(files, meta["quats"]["file"], shape)[..., 3] >= FIRST_TAG
    count = meta["count"].integer(1, mask.size)
    if mask.sum() != count:
        raise ValueError(f"{meta['count'].where} is {count}, but {mask.sum()} texels hold a Gaussian")
    scales = _map(files, meta["scales"]["file"], shape)[mask][:, :3]
    sh0 = _map(files, meta["sh0"]["file"], shape)[mask]
    texels = SplatScene(
        means=torch.from_numpy(_decode_offsets(meta["offsets"], _map(files, meta["offsets"]["file"], shape)[mask])),
        quats=torch.from_numpy(quats_from_texels(_map(files, meta["quats"]["file"], shape)[mask])),
        scales=torch.from_numpy(looked_up(meta["scales"]["codebook"], scales)),
        opacities=torch.from_numpy(opacities_from_bytes(sh0[:, 3])),
        sh0=torch.from_numpy(looked_up(meta["sh0"]["codebook"], sh0[:, None, :3])),
        shN=torch.from_numpy(decode_shN(files, meta, count)),
        antialiased=meta["antialiased"].value is True,
    )
    return BakedScene(_surface(meta["surface"]), torch.from_numpy(mask), texels, meta["merged"].integer(0, 2**53))


def _laid_out(rows: UInt8[np.ndarray, "n c"], mask: Bool[np.ndarray, "L H W"]) -> UInt8[np.ndarray, "LH W c"]:
    image = np.zeros((*mask.shape, rows.shape[1]), np.uint8)
    image[mask] = rows
    return image.reshape(-1, *image.shape[2:])


def _map(files: SogFiles, name: Json, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "L H W 4"]:
    layers, height, width = shape
    image = files.texture(name, layers * height * width, layers * height * width)
    if image.shape[1] != width:
        raise ValueError(f"{name.where}: {name.text()!r} is {image.shape[1]} texels wide, not {width}")
    return image.reshape(layers, height, width, 4)


def _encode_offsets(
    offsets: Float32[np.ndarray, "n 3"],
) -> tuple[list[float], list[float], UInt8[np.ndarray, "n 4"]]:
    low, high = offsets.min(axis=0).astype(np.float64), offsets.max(axis=0).astype(np.float64)
    steps = np.rint((offsets - low) * (_LEVELS / np.where(high > low, high - low, 1))).astype(np.uint16)
    codes = [steps[:, 0], steps[:, 1], steps[:, 2] & 255, steps[:, 2] >> 8]
    return low.tolist(), high.tolist(), np.stack(codes, axis=1).astype(np.uint8)


def _decode_offsets(field: Json, texels: UInt8[np.ndarray, "n 4"]) -> Float32[np.ndarray, "n 3"]:
    low, high = (np.array(field[name].numbers(3)) for name in ("mins", "maxs"))
    wide = texels.astype(np.float64)
    steps: Float64[np.ndarray, "n 3"] = np.stack([wide[:, 0], wide[:, 1], wide[:, 2] + 256 * wide[:, 3]], axis=1)
    return (low + (high - low) * (steps / _LEVELS)).astype(np.float32)


def _described(surface: Surface) -> dict[str, Any]:
    if isinstance(surface, Sphere):
        return {"center": list(surface.center), "radius": surface.radius}
    if not isinstance(surface, MeshSurface):
        raise ValueError(f"a file holds a Sphere or a MeshSurface, not {type(surface).__name__}")
    return {
        "vertices": shortest(surface.vertices.float().numpy().reshape(-1)),
        "faces": surface.faces.reshape(-1).tolist(),
        "face_uvs": shortest(surface.face_uvs.float().numpy().reshape(-1)),
    }


def _surface(field: Json) -> Surface:
    try:
        if field.get("radius") is not None:
            x, y, z = field["center"].numbers(3)
            return Sphere((x, y, z), field["radius"].number())
        vertices, faces, face_uvs = (field[name] for name in ("vertices", "faces", "face_uvs"))
        if len(vertices) % 3 or len(faces) % 3:
            raise ValueError(f"vertices and faces must be threes, got {len(vertices)} and {len(faces)} numbers")
        return MeshSurface(
            torch.tensor(vertices.numbers(9, MOST_META_BYTES)).reshape(-1, 3),
            torch.tensor([face.integer(0, len(vertices)) for face in faces], dtype=torch.int64).reshape(-1, 3),
            torch.tensor(face_uvs.numbers(2 * len(faces))).reshape(-1, 3, 2),
        )
    except ValueError as error:
        raise ValueError(f"{field.where}: {error}") from error
