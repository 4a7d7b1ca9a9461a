"""Bytes of what is on disk: everything that is needed to decode, nothing estimated."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path


def bytes_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files in a folder.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    return sum(bytes_by_file(path).values())


def bytes_by_file(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of each file in a folder by its relative name, or of the one file.

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(entry for entry in path.rglob("*") if entry.is_file())
        return {entry.relative_to(path).as_posix(): entry.stat().st_size for entry in files}
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    return {path.name: path.stat().st_size}


def bytes_by_entry(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes that each entry takes inside a zip, as stored; what the zip itself adds is under "container".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a zip.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not a zip file ({error})") from error
    return sizes | {"container": path.stat().st_size - sum(sizes.values())}


def bytes_by_share(total: int, layout: dict[str, int]) -> dict[str, int]:
    """Split `total` bytes over names in proportion to `layout`, in whole bytes that sum to `total`.

    For files whose streams are compressed together, so that no byte belongs to one attribute alone.
    """
    whole = sum(layout.values())
    if whole == 0:
        return dict.fromkeys(layout, 0)
    split: dict[str, int] = {}
    laid_out = given_out = 0
    for name, size in layout.items():
        laid_out += size
        split[name] = total * laid_out // whole - given_out
        given_out += split[name]
    return split
