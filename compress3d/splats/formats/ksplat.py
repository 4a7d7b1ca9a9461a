"""mkkellogg's `.ksplat`, version 0.1: sections of Gaussians, at compression level 0 (float), 1 or 2 (buckets).

Source: the viewer mkkellogg/GaussianSplats3D, whose SplatBuffer defines the format. Read only: no other program asks
for such files, and the viewer reads others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from compress3d.splats.formats.quantization import log_scales, opacities_from_bytes, sh0_from_colors
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene

_HEADER_BYTES, _SECTION_HEADER_BYTES = 4096, 1024
_BUCKET_CENTER_BYTES = 12
_DEFAULT_SH_RANGE = 1.5

_DEFAULT_POSITION_RANGE = 32767
_SECTION_HEADER = struct.Struct("<4IfH2x4IH")

_LEVELS = (("<f4", "<f4", "<f4"), ("<u2", "<f2", "<f2"), ("<u2", "<f2", "u1"))
"""By compression level, the numbers of positions, of scales and rotations, and of harmonics."""


@dataclass(frozen=True, slots=True)
class _Section:
    """A section header, in the order of the file; lengths in bytes where the name says so."""

    splat_count: int
    max_splat_count: int
    bucket_size: int
    bucket_count: int
    block_size: float
    bucket_bytes: int
    position_range: int
    storage_bytes: int
    full_bucket_count: int
    partial_bucket_count: int
    sh_degree: int

    @property
    def buckets_bytes(self) -> int:
        """Bytes before the first splat: lengths of the partial buckets, then the centres of all."""
        return 4 * self.partial_bucket_count + self.bucket_bytes * self.bucket_count


def matches(path: Path, head: bytes) -> bool:
    """Whether the file is named `.ksplat`: its first bytes are a version number and nothing more."""
    return path.suffix.lower() == ".ksplat"


def read(path: Path) -> SplatScene:
    """Read a `.ksplat`; sections of a lower degree get zeros up to the highest, an axis of scale 0 FLAT_LOG_SCALE.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a `.ksplat` 0.x, or its sections do not fit the file.
    """
    size = path.stat().st_size
    if size < _HEADER_BYTES:
        raise ValueError(f"{path}: file size is {size} bytes; the header of a .ksplat alone takes {_HEADER_BYTES}")
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    level, sh_range = _read_header(path, data)
    sections = _read_section_headers(path, data, level)
    degree = max(section.sh_degree for section in sections)
    offset = _HEADER_BYTES + _SECTION_HEADER_BYTES * len(sections)
    scenes = []
    for index, section in enumerate(sections):
        record = _record(level, section.sh_degree)
        end = offset + section.buckets_bytes + record.itemsize * section.max_splat_count
        if end > size:
            raise ValueError(
                f"{path}: section {index} declares {section.max_splat_count} splats and {section.bucket_count} "
                f"buckets, which end at byte {end}, but the file has {size} bytes"
            )
        try:
            scenes.append(_decode(data[offset:end], section, level, record, sh_range).with_sh_degree(degree))
        except ValueError as error:
            raise ValueError(f"{path}: section {index}: {error}") from None
        offset = end
    names = scenes[0].tensors()
    return scenes[0].with_tensors(**{name: torch.cat([scene.tensors()[name] for scene in scenes]) for name in names})


def _read_header(path: Path, data: NDArray[np.uint8]) -> tuple[int, tuple[float, float]]:
    """The compression level, and the range of 8-bit harmonics."""
    major, minor, level = data[0], data[1], int(data[20:22].view("<u2")[0])
    if major != 0 or minor < 1:
        raise ValueError(f"{path}: version is {major}.{minor}; expected 0.1 or a later 0.x")
    if level >= len(_LEVELS):
        raise ValueError(f"{path}: compression level is {level}; expected 0, 1 or 2")
    low, high = data[36:44].view("<f4").tolist()
    return level, (low or -_DEFAULT_SH_RANGE, high or _DEFAULT_SH_RANGE)


def _read_section_headers(path: Path, data: NDArray[np.uint8], level: int) -> list[_Section]:
    max_sections, _, _, splats = data[4:20].view("<u4").tolist()
    if not 0 < max_sections <= (len(data) - _HEADER_BYTES) // _SECTION_HEADER_BYTES:
        raise ValueError(
            f"{path}: the header declares room for {max_sections} sections; expected at least 1, "
            f"and {_SECTION_HEADER_BYTES} bytes for each in the file's {len(data)}"
        )
    sections = []
    for index in range(max_sections):
        offset = _HEADER_BYTES + index * _SECTION_HEADER_BYTES
        section = _Section(*_SECTION_HEADER.unpack(data[offset : offset + _SECTION_HEADER.size].tobytes()))
        if section.sh_degree not in SH_COEFFICIENTS:
            raise ValueError(f"{path}: section {index}: SH degree is {section.sh_degree}; expected 0 to 3")
        if section.splat_count > section.max_splat_count:
            raise ValueError(f"{path}: section {index} has {section.splat_count} splats of {section.max_splat_count}")
        if level and section.bucket_count and section.bucket_bytes != _BUCKET_CENTER_BYTES:
            raise ValueError(f"{path}: section {index}: a bucket takes {section.bucket_bytes} bytes; expected 12")
        sections.append(section)
    total = sum(section.splat_count for section in sections)
    if total != splats or not total:
        raise ValueError(f"{path}: the header declares {splats} splats, but its sections {total}; expected 1 or more")
    return sections


def _record(level: int, degree: int) -> np.dtype[np.void]:
    position, number, harmonic = _LEVELS[level]
    fields = [("position", position, 3), ("scale", number, 3), ("rotation", number, 4), ("color", "u1", 4)]
    return np.dtype([*fields, ("sh", harmonic, (3 * SH_COEFFICIENTS[degree],))])


def _decode(
    data: NDArray[np.uint8], section: _Section, level: int, record: np.dtype[np.void], sh_range: tuple[float, float]
) -> SplatScene:
    records = data[section.buckets_bytes :].view(record)[: section.splat_count]
    positions = records["position"].astype(np.float32)
    if level:
        half = section.position_range or _DEFAULT_POSITION_RANGE
        positions = (positions - half) * (section.block_size / 2 / half) + _bucket_centers(data, section)
    low, high = sh_range
    harmonics = records["sh"].astype(np.float32)
    if level == 2:
        harmonics = harmonics * np.float32((high - low) / 255) + np.float32(low)
    return SplatScene(
        means=torch.from_numpy(positions.astype(np.float32)),
        quats=torch.from_numpy(records["rotation"].astype(np.float32)),
        scales=torch.from_numpy(log_scales(records["scale"].astype(np.float32))),
        opacities=torch.from_numpy(opacities_from_bytes(records["color"][:, 3])),
        sh0=torch.from_numpy(sh0_from_colors(records["color"][:, None, :3] / 255)),
        shN=torch.from_numpy(_by_coefficient(harmonics, section.sh_degree)),
    )


def _bucket_centers(data: NDArray[np.uint8], section: _Section) -> NDArray[np.float32]:
    """The (splats, 3) centres of the splats' buckets: full buckets come first, then those of the lengths stored."""
    if section.full_bucket_count + section.partial_bucket_count > section.bucket_count:
        raise ValueError(
            f"{section.full_bucket_count} full and {section.partial_bucket_count} partial buckets are more than the "
            f"{section.bucket_count} declared"
        )
    partial = data[: 4 * section.partial_bucket_count].view("<u4")
    centers = data[len(partial) * 4 : section.buckets_bytes].view("<f4").reshape(-1, 3)
    full = np.full(section.full_bucket_count, section.bucket_size, np.int64)
    ends = np.cumsum(np.concatenate([full, partial.astype(np.int64)]))
    held = int(ends[-1]) if len(ends) else 0
    if held < section.splat_count:
        raise ValueError(f"the buckets hold {held} splats, but the section has {section.splat_count}")
    return centers[np.searchsorted(ends, np.arange(section.splat_count), side="right")]


def _by_coefficient(harmonics: NDArray[np.float32], degree: int) -> NDArray[np.float32]:
    """From band by band, channel-major within a band, to (splats, K, 3)."""
    count = len(harmonics)
    coefficients = np.empty((count, SH_COEFFICIENTS[degree], 3), np.float32)
    for band in range(1, degree + 1):
        first, width = band * band - 1, 2 * band + 1
        stored = harmonics[:, 3 * first : 3 * (first + width)].reshape(count, 3, width)
        coefficients[:, first : first + width] = stored.transpose(0, 2, 1)
    return coefficients
