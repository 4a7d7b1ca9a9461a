"""PlayCanvas's `.compressed.ply`: chunks of 256 Gaussians, each quantised to 16 bytes within the bounds of its chunk.

Source: the "Compressed PLY" page of the PlayCanvas user manual (Gaussian splatting, formats). Elements: `chunk` (bounds
of positions, log-scales and, in newer files, colours), `vertex` (four packed uint), and optionally `sh` (bytes).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compress3d.splats.formats.morton import morton_order
from compress3d.splats.formats.ply import header_start, trained_antialiased
from compress3d.splats.formats.ply_elements import Element, PlyHeader, read_header, read_rows
from compress3d.splats.formats.quantization import (
    alphas_from_opacities,
    colors_from_sh0,
    opacities_from_bytes,
    sh0_from_colors,
    to_levels,
)
from compress3d.splats.formats.sanitize import require_valid
from compress3d.splats.formats.smallest_three import LARGEST_OTHER, leave_out_largest, restore_largest
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from secateur.files import replacing_file

_CHUNK = 256
_LARGEST_LOG_SCALE = 20.0
_LARGEST_SH = 4.0
_BOUNDED = ("x", "y", "z", "scale_x", "scale_y", "scale_z", "r", "g", "b")
_PACKED = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
_VECTOR_BITS, _COLOR_BITS, _ROTATION_BITS = (11, 10, 11), (8, 8, 8, 8), (2, 10, 10, 10)


def matches(path: Path, head: bytes) -> bool:
    """Whether `head` begins a PLY whose rows are packed."""
    return head.startswith((b"ply\n", b"ply\r")) and b"packed_position" in head


def read(path: Path) -> SplatScene:
    """Read a compressed PLY, with 12 or 18 bounds a chunk, with or without spherical harmonics.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a compressed PLY, or its rows do not fit its header.
    """
    header = read_header(path)
    chunk, vertex, sh = header.element("chunk"), header.element("vertex"), header.find("sh")
    coefficients = _check_properties(path, chunk, vertex, sh)
    n = vertex.count
    means, quats, scales = (np.empty((n, width), np.float32) for width in (3, 4, 3))
    opacities, sh0 = np.empty(n, np.float32), np.empty((n, 1, 3), np.float32)
    shN = np.empty((n, coefficients, 3), np.float32)
    low, high = _read_bounds(header, chunk)
    for rows, block in read_rows(header, vertex):
        chunks = np.arange(rows.start, rows.stop) // _CHUNK
        positions, sizes = (_unpack(block[name], _VECTOR_BITS) for name in ("packed_position", "packed_scale"))
        colors = _unpack(block["packed_color"], _COLOR_BITS)
        share = np.concatenate([positions, sizes, colors[:, :3]], axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = low[chunks] * (1 - share) + high[chunks] * share
        means[rows], scales[rows], sh0[rows, 0] = values[:, :3], values[:, 3:6], sh0_from_colors(values[:, 6:])
        opacities[rows] = opacities_from_bytes((block["packed_color"] & 255).astype(np.uint8))
        quats[rows] = _unpack_quats(block["packed_rotation"])
    if sh is not None:
        values_of_bytes = _sh_of_bytes()
        for rows, block in read_rows(header, sh):
            for index in range(3 * coefficients):
                shN[rows, index % coefficients, index // coefficients] = values_of_bytes[block[f"f_rest_{index}"]]
    arrays = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "sh0": sh0, "shN": shN}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return SplatScene(**tensors, antialiased=trained_antialiased(header, default=False))


def write(scene: SplatScene, path: Path) -> None:
    """Write a compressed PLY in Z-order, with 18 bounds a chunk.

    Log-scales are clamped to [-20, 20] and higher harmonics to [-4, 4].

    Raises:
        ValueError: a Gaussian cannot be rendered (it would spoil its chunk).
    """
    require_valid(scene)
    means, quats, scales, opacities, sh0, shN = (tensor.detach().cpu().numpy() for tensor in scene.tensors().values())
    order = morton_order(means)
    scales = scales.clip(-_LARGEST_LOG_SCALE, _LARGEST_LOG_SCALE)
    values = np.concatenate([means, scales, colors_from_sh0(sh0[:, 0])], axis=1)[order]
    starts = np.arange(0, len(order), _CHUNK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    chunks = np.arange(len(order)) // _CHUNK
    extent = high.astype(np.float64) - low
    share = (values - low.astype(np.float64)[chunks]) / np.where(extent > 0, extent, 1)[chunks]
    alphas = alphas_from_opacities(opacities[order])[:, None]
    packed = np.empty((len(order), len(_PACKED)), "<u4")
    packed[:, 0] = _pack(share[:, :3], _VECTOR_BITS)
    packed[:, 1] = _pack_quats(quats[order])
    packed[:, 2] = _pack(share[:, 3:6], _VECTOR_BITS)
    packed[:, 3] = _pack(np.concatenate([share[:, 6:], alphas], axis=1), _COLOR_BITS)
    bounds = np.stack([low.reshape(-1, 3, 3), high.reshape(-1, 3, 3)], axis=2).astype("<f4")
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        file.write(_header(scene, len(starts)).encode())
        file.write(bounds.tobytes())
        file.write(packed.tobytes())
        for start in starts if shN.size else ():
            file.write(_bytes_of_sh(shN[order[start : start + _CHUNK]]).tobytes())


def _header(scene: SplatScene, chunks: int) -> str:
    lines = [*header_start(scene), f"element chunk {chunks}"]
    for first in range(0, len(_BOUNDED), 3):
        lines += [f"property float {end}_{name}" for end in ("min", "max") for name in _BOUNDED[first : first + 3]]
    lines += [f"element vertex {len(scene)}", *(f"property uint {name}" for name in _PACKED)]
    if scene.shN.shape[1]:
        lines += [f"element sh {len(scene)}"]
        lines += [f"property uchar f_rest_{index}" for index in range(3 * scene.shN.shape[1])]
    return "\n".join([*lines, "end_header", ""])


def _check_properties(path: Path, chunk: Element, vertex: Element, sh: Element | None) -> int:
    """The number of coefficients above degree 0 in each channel, once elements, properties and counts fit together."""
    names = [f"{end}_{name}" for end in ("min", "max") for name in _BOUNDED[:6]]
    expected = [(chunk, name, ("f4", "f8")) for name in names] + [(vertex, name, ("u4",)) for name in _PACKED]
    rest = 0
    if sh is not None:
        rest = sum(name.startswith("f_rest_") for name in sh.dtypes)
        if rest not in [3 * count for count in SH_COEFFICIENTS.values() if count]:
            raise ValueError(f"{path}: element 'sh' has {rest} f_rest properties; expected 9, 24 or 45")
        if sh.count != vertex.count:
            raise ValueError(f"{path}: element 'sh' has {sh.count} rows, but element 'vertex' has {vertex.count}")
        expected += [(sh, f"f_rest_{index}", ("u1",)) for index in range(rest)]
    for element, name, dtypes in expected:
        if element.dtypes.get(name) not in dtypes:
            found = element.dtypes.get(name, "missing")
            raise ValueError(
                f"{path}: element {element.name!r}: property {name!r} is {found}, expected {' or '.join(dtypes)}"
            )
    if chunk.count != -(-vertex.count // _CHUNK):
        raise ValueError(
            f"{path}: element 'chunk' has {chunk.count} rows, expected {-(-vertex.count // _CHUNK)}: "
            f"one for each {_CHUNK} of the {vertex.count} vertices"
        )
    return rest // 3


def _read_bounds(header: PlyHeader, chunk: Element) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lower and upper bounds, each (chunks, 9): position, log-scale, colour (0 and 1 where the file has none)."""
    bounds = np.zeros((2, chunk.count, len(_BOUNDED)), np.float32)
    bounds[1, :, 6:] = 1
    for rows, block in read_rows(header, chunk):
        for end, column in itertools.product(range(2), range(len(_BOUNDED))):
            name = f"{('min', 'max')[end]}_{_BOUNDED[column]}"
            if name in chunk.dtypes:
                bounds[end, rows, column] = block[name]
    return bounds[0], bounds[1]


def _unpack(packed: NDArray[np.uint32], bits: tuple[int, ...]) -> NDArray[np.float32]:
    """Split integers into fields, the first in the highest bits, each as a share of its range; (N, fields)."""
    fields = np.empty((len(packed), len(bits)), np.float32)
    shift = 32
    for index, width in enumerate(bits):
        shift -= width
        fields[:, index] = ((packed >> shift) & ((1 << width) - 1)) / ((1 << width) - 1)
    return fields


def _pack(shares: NDArray[np.floating[Any]], bits: tuple[int, ...]) -> NDArray[np.uint32]:
    """The inverse of `_unpack`."""
    packed = np.zeros(len(shares), np.uint32)
    for index, width in enumerate(bits):
        packed <<= width
        packed |= to_levels(shares[:, index], 1 << width)
    return packed


def _unpack_quats(packed: NDArray[np.uint32]) -> NDArray[np.float32]:
    shares = _unpack(packed, _ROTATION_BITS)[:, 1:]
    return restore_largest((shares - np.float32(0.5)) * np.float32(2 * LARGEST_OTHER), packed >> 30)


def _pack_quats(quats: NDArray[np.float32]) -> NDArray[np.uint32]:
    others, largest = leave_out_largest(quats)
    # Component 0 to 3 of two bits is that third of their range.
    shares = [largest[:, None] / 3, others / (2 * LARGEST_OTHER) + 0.5]
    return _pack(np.concatenate(shares, axis=1), _ROTATION_BITS)


def _bytes_of_sh(shN: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, K, 3) coefficients as (N, 3, K) bytes: channel-major, as in the file."""
    return np.clip((shN.transpose(0, 2, 1) / (2 * _LARGEST_SH) + 0.5) * 256, 0, 255).astype(np.uint8)


def _sh_of_bytes() -> NDArray[np.float32]:
    """The (256,) coefficients that bytes stand for: the middle of each step, but at 0 and 255 the ends of the range."""
    shares = (np.arange(256) + 0.5) / 256
    shares[[0, 255]] = 0, 1
    return ((shares - 0.5) * 2 * _LARGEST_SH).astype(np.float32)
