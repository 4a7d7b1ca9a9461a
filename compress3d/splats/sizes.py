"""Which attribute of a scene takes how many bytes of its file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from compress3d.splats.scene import SH_COEFFICIENTS
from compress3d.splats.standalone.packing import GAUSSIANS_PER_ENTRY
from secateur.metrics.size import bytes_by_entry, bytes_by_file, bytes_by_share, bytes_of

OTHER = "other"
"""What belongs to no attribute: headers, indices, codebooks, the container."""

_FLOATS = {"means": 12, "quats": 16, "scales": 12, "opacities": 4, "sh0": 12}
_PACKED = {
    ".compressed.ply": {"means": 4, "quats": 4, "scales": 4, "sh0 + opacities": 4},
    ".splat": {"means": 12, "scales": 12, "sh0 + opacities": 4, "quats": 4},
    ".spz": {"means": 9, "opacities": 1, "sh0": 3, "scales": 3, "quats": 4},
    ".html": {"means": 6, "scales": 3, "quats": 4, "sh0 + opacities": 4},
    ".ksplat": {"means": 6, "scales": 6, "quats": 8, "sh0 + opacities": 4},
}
"""Bytes of one Gaussian by attribute, higher spherical harmonics apart: these take one byte a number, or a palette."""


def scene_bytes(path: Path) -> int:
    """Bytes of everything that is needed to decode the scene at `path`: a file, a folder, or a SOG's meta.json.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    return sum(_sog_files(path).values()) if _unbundled(path) else bytes_of(path)


def bytes_by_attribute(path: Path, sh_degree: int) -> dict[str, int]:
    """Bytes of the scene at `path` by attribute; they sum to `scene_bytes`.

    A SOG has a texture for each attribute, so its figures are exact. The other formats interleave the attributes or
    compress them together: there the file's bytes are split in proportion to the attributes' widths before that.

    Args:
        path: a file, a folder, or a SOG's meta.json.
        sh_degree: of the scene in it.

    Raises:
        FileNotFoundError: there is nothing at `path`.
        ValueError: the file is not what its name says.
    """
    if _unbundled(path):
        sizes = _sog_files(path)
        return _by_texture(sizes, (_folder(path) / "meta.json").read_bytes())
    kind = _kind(path)
    if kind == ".sog":
        with zipfile.ZipFile(path) as archive:
            return _by_texture(bytes_by_entry(path), archive.read("meta.json"))
    coefficients = 3 * SH_COEFFICIENTS[sh_degree]
    packed = _PACKED.get(kind)
    higher = _in_a_page(coefficients) if kind == ".html" else coefficients
    layout = packed | {"shN": higher} if packed else _FLOATS | {"shN": 4 * coefficients}
    return bytes_by_share(bytes_of(path), {name: size for name, size in layout.items() if size})


def _in_a_page(coefficients: int) -> int:
    """Bytes of a Gaussian's harmonics in a page: which entry it has, and its share of the palette."""
    return 2 + round(coefficients / GAUSSIANS_PER_ENTRY) if coefficients else 0


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2048)
    if head.startswith(b"PK"):
        return ".sog"
    return ".compressed.ply" if b"element chunk" in head else path.suffix.lower()


def _unbundled(path: Path) -> bool:
    return path.is_dir() or path.name.lower() == "meta.json"


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _sog_files(path: Path) -> dict[str, int]:
    """Bytes of meta.json and of the files that it names: the folder may hold other things."""
    sizes = bytes_by_file(_folder(path))
    named = {"meta.json", *_textures((_folder(path) / "meta.json").read_bytes())}
    return {name: size for name, size in sizes.items() if name in named}


def _textures(meta: bytes) -> dict[str, str]:
    """File name -> attribute, as a SOG's meta.json has it."""
    entries = json.loads(meta)
    shared = {"sh0": "sh0 + opacities"}
    return {
        file: shared.get(attribute, attribute)
        for attribute, entry in entries.items()
        if isinstance(entry, dict)
        for file in entry.get("files", [])
    }


def _by_texture(sizes: dict[str, int], meta: bytes) -> dict[str, int]:
    attributes = _textures(meta)
    split: dict[str, int] = {}
    for name, size in sizes.items():
        attribute = attributes.get(name, OTHER)
        split[attribute] = split.get(attribute, 0) + size
    other = split.pop(OTHER, 0)
    return split | ({OTHER: other} if other else {})
