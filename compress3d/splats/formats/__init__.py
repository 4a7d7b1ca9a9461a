"""Reading and writing splat scenes, whatever the format: `read_scene`, `write_scene`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from compress3d.splats.formats.sanitize import drop_invalid
from compress3d.splats.scene import SplatScene
from compress3d.suffixes import SPLAT_CODECS, splat_codec

__all__ = ["drop_invalid", "is_spz", "read_scene", "write_scene"]

_HEAD_BYTES = 1 << 16


class Codec(Protocol):
    """What the module of a format offers; one that is only read has no `write`."""

    def read(self, path: Path, **options: Any) -> SplatScene:
        """The scene in a file, as it is: Gaussians may be invalid. Raises ValueError, FileNotFoundError."""
        ...

    def write(self, scene: SplatScene, path: Path, **options: Any) -> None:
        """Replace `path` by the scene, or leave it as it was."""
        ...

    def matches(self, path: Path, head: bytes) -> bool:
        """Whether a file of this name that begins with `head` (b"" for a folder) is of this format."""
        ...


def read_scene(path: str | Path, keep_invalid: bool = False, spz_axes: str | None = None) -> SplatScene:
    """Read a splat scene from a file, or from the folder or meta.json of an unbundled SOG.

    The content decides the format where it can, the name where it cannot.

    Args:
        path: the file or folder.
        keep_invalid: keep the Gaussians that `drop_invalid` takes out.
        spz_axes: where x, y and z point in an SPZ file that does not say so and has not SPZ's own axes: the `axes` of
            `spz.read`. "RDF" for the files of tools that write the axes of a PLY.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the format is unknown, or the file is not what its format asks for: it names file and field. Or
            there are spz_axes, and the file is not SPZ.
    """
    path = Path(path)
    head = _head(path)
    codec = next((codec for codec in _codecs() if codec.matches(path, head)), None) or _codec_by_name(path)
    if spz_axes is not None and codec is not _import("spz"):
        raise ValueError(f"{path}: not SPZ, the one format that can be told its axes")
    scene = codec.read(path) if spz_axes is None else codec.read(path, axes=spz_axes)
    return scene if keep_invalid else drop_invalid(scene)[0]


def is_spz(path: str | Path) -> bool:
    """Whether the content of a file is SPZ, whatever its name. Raises FileNotFoundError."""
    return _import("spz").matches(Path(path), _head(Path(path)))


def write_scene(scene: SplatScene, path: str | Path, **options: Any) -> None:
    """Write a splat scene; the name says in which format, a folder's name (no suffix) or a meta.json in unbundled SOG.

    Args:
        scene: at least one Gaussian.
        path: the file or folder, replaced only when all is written.
        options: those of the format's `write`.

    Raises:
        ValueError: no format of that name can be written, or the format cannot hold the scene.
    """
    path = Path(path)
    codec = _codec_by_name(path)
    if not hasattr(codec, "write"):
        others = ", ".join(suffix for suffix in SPLAT_CODECS if suffix != path.suffix.lower())
        raise ValueError(f"{path}: {path.suffix} is only read, not written; choose from {others}")
    if not len(scene):
        raise ValueError(f"{path}: there is nothing to write: the scene has no Gaussians")
    codec.write(scene, path, **options)


def _head(path: Path) -> bytes:
    """What a file begins with; nothing, for a folder."""
    if path.is_dir():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _import(module: str) -> Codec:
    # Only when asked: one format must not load the libraries of all.
    return cast(Codec, import_module(f"{__name__}.{module}"))


def _codecs() -> Iterator[Codec]:
    for module in dict.fromkeys(SPLAT_CODECS.values()):
        yield _import(module)


def _codec_by_name(path: Path) -> Codec:
    if path.is_dir() or not (path.suffix or path.exists()):
        return _import("sog")
    module = splat_codec(path.name)
    if module is None:
        raise ValueError(f"{path}: not a splat scene of a known format; known are {', '.join(SPLAT_CODECS)}")
    return _import(module)
