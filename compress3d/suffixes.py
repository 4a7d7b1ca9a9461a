"""Which format of splat scenes a file's name asks for. Apart from the codecs, because help must not wait for torch."""

from __future__ import annotations

SPLAT_CODECS = {
    ".compressed.ply": "compressed_ply",
    ".ply": "ply",
    ".splat": "splat",
    ".ksplat": "ksplat",
    ".spz": "spz",
    ".sog": "sog",
    "meta.json": "sog",
    ".glb": "gltf",
    ".html": "page",
}
"""How a file's name ends, or the whole of it -> the module of its codec in `splats/formats`."""


def splat_codec(name: str) -> str | None:
    """The module of the codec for files of this name, in any case; None if it is of no known format."""
    name = name.lower()
    for suffix, module in SPLAT_CODECS.items():
        if name.endswith(suffix) if suffix.startswith(".") else name == suffix:
            return module
    return None
