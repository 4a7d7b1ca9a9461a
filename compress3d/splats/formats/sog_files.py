"""The files of a SOG scene, a folder or a zip archive, read with suspicion: metadata, and textures of known size."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from compress3d.splats.formats.checked_json import Json
from secateur.files import replacing_folder

META = "meta.json"
_TEXTURE_SUFFIXES = (".webp", ".png")
MOST_META_BYTES = 1 << 22
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, struct.error)
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class SogFiles:
    """The files of one scene, opened: use as a context.

    Args:
        path: a folder that holds a meta.json, the meta.json itself, or a zip archive (.sog).

    Raises:
        FileNotFoundError: there is no such file or folder, or the folder has no meta.json.
        ValueError: the archive is damaged, or has an entry that would lie outside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = path if path.is_dir() else path.parent
        self._archive: zipfile.ZipFile | None = None
        if path.is_file() and path.suffix.lower() != ".json":
            try:
                self._archive = zipfile.ZipFile(path)
            except _BROKEN_ZIP as error:
                raise ValueError(f"{path}: not a zip archive, which a bundled SOG is: {error}") from error
            for name in self._archive.namelist():
                parts = name.replace("\\", "/").split("/")
                if not parts[0] or ":" in parts[0] or ".." in parts:
                    raise ValueError(f"{path}: entry {name!r} would lie outside the archive")
        elif not (self._folder / META).is_file() or not path.exists():
            raise FileNotFoundError(f"{path}: no {META} there, which a SOG scene begins with")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._archive is not None:
            self._archive.close()

    def meta(self) -> Json:
        """The metadata.

        Raises:
            ValueError: there is none, or it is not JSON.
        """
        name = META if self.path.suffix.lower() != ".json" else self.path.name
        where = f"{self.path}: {META}"
        return Json.parse(self._bytes(name, MOST_META_BYTES, where), where)

    def texture(self, name: Json, fewest: int, most: int) -> UInt8[np.ndarray, "height width 4"]:
        """The image that an entry of the metadata names, as RGBA; its size is checked before it is decoded.

        Args:
            name: the entry.
            fewest: the least number of texels.
            most: the largest number of texels.

        Raises:
            ValueError: the file is missing, outside the scene, not a lossless image, or of another size.
        """
        data = self._bytes(name.text(), 4 * most + 65536, name.where)
        shown = f"{name.where}: {name.text()!r}"
        try:
            image = Image.open(io.BytesIO(data), formats=("WEBP", "PNG"))
        except _BROKEN_IMAGE as error:
            raise ValueError(f"{shown} is not a WebP or PNG image: {error}") from error
        with image:
            width, height = image.size
            if not fewest <= width * height <= most:
                raise ValueError(f"{shown} has {width}x{height} texels, expected {fewest} to {most} in all")
            if image.format == "WEBP" and b"VP8L" not in data:
                raise ValueError(f"{shown} is compressed with losses, which corrupts what it holds")
            try:
                return np.asarray(image.convert("RGBA"), np.uint8)
            except _BROKEN_IMAGE as error:
                raise ValueError(f"{shown} is a damaged image: {error}") from error

    def _bytes(self, name: str, limit: int, where: str) -> bytes:
        if not _is_plain(name):
            raise ValueError(f"{where}: {name!r} must be a plain file name inside the scene")
        try:
            if self._archive is not None:
                with self._archive.open(name) as file:
                    data = file.read(limit + 1)
            else:
                with (self._folder / name).open("rb") as file:
                    data = file.read(limit + 1)
        except (KeyError, FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{where}: {self.path} has no file {name!r}") from error
        except _BROKEN_ZIP as error:
            raise ValueError(f"{where}: {name!r} is damaged: {str(error)[:100] or 'cut short'}") from error
        if len(data) > limit:
            raise ValueError(f"{where}: {name!r} has more than the {limit} bytes that it could need")
        return data


@contextmanager
def replacing_sog(folder: Path) -> Iterator[Path]:
    """`replacing_folder` for a scene as a folder: textures that only the former meta.json names are removed."""
    with replacing_folder(folder, index=META, former=_texture_names(folder)) as temporary:
        yield temporary


def _texture_names(folder: Path) -> set[str]:
    """The images in `folder` that its meta.json names; none where it cannot be read."""
    try:
        with SogFiles(folder) as files:
            meta = files.meta().value
    except (FileNotFoundError, ValueError):
        return set()
    fields = meta.values() if isinstance(meta, dict) else ()
    lists = (field.get("files") for field in fields if isinstance(field, dict))
    names = (name for each in lists if isinstance(each, list) for name in each)
    # A stranger's meta.json may name any file: only what can be a texture is its own.
    return {str(name) for name in names if _is_plain(str(name)) and str(name).lower().endswith(_TEXTURE_SUFFIXES)}


def _is_plain(name: str) -> bool:
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0")
