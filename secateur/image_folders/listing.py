"""What images lie in a folder, and which of two folders belong together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
"""Endings of the files that are images, in small letters."""


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A file of an image, as its folder lists it.

    Args:
        name: its path within the folder, with "/" between parts.
        bytes: of the file.
        modified_ns: when it was last written.
    """

    name: str
    bytes: int
    modified_ns: int

    @property
    def stem(self) -> str:
        """The name without its ending, which another format of the same image has, too."""
        return str(PurePosixPath(self.name).with_suffix(""))


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The images of a folder and of the folders in it, in the order of their names.

    Args:
        path: of the folder.
        images: in it; no file is open and nothing is decoded.
    """

    path: Path
    images: tuple[ListedImage, ...]

    @classmethod
    def listed(cls, path: Path) -> Self:
        """List a folder; names that begin with a dot are left out, and links to folders are not followed.

        Raises:
            NotADirectoryError: `path` is no folder.
            ValueError: no image lies in it.
        """
        if not path.is_dir():
            raise NotADirectoryError(f"{path}: no folder of images")
        images = tuple(sorted(_listed(path), key=lambda image: image.name))
        if not images:
            raise ValueError(f"{path}: no images in it ({', '.join(sorted(SUFFIXES))})")
        return cls(path, images)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def name(self) -> str:
        """Of the folder itself."""
        return self.path.resolve().name

    @property
    def bytes(self) -> int:
        """Of all its images."""
        return sum(image.bytes for image in self.images)

    def file(self, image: ListedImage) -> Path:
        """Where the image lies."""
        return self.path / image.name

    def signature(self) -> list[tuple[str, int, int]]:
        """Names, bytes and times, by which a change of the folder shows."""
        return [(image.name, image.bytes, image.modified_ns) for image in self.images]


def holds_images(path: Path) -> bool:
    """Whether an image lies in a folder, or in a folder within it: stops at the first."""
    if not path.is_dir():
        return False
    folders = []
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_image(entry.name) and entry.is_file():
                return True
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
    return any(_is_image(entry.name) for folder in folders for entry in _entries(folder))


def pairs_of(one: ImageFolder, other: ImageFolder) -> list[tuple[ListedImage, ListedImage]]:
    """The images of both folders that have one name: the whole of it, or but for the ending where that tells them.

    In the order of the first folder.
    """
    exact = {image.name: image for image in other.images}
    counts = Counter(image.stem for image in one.images), Counter(image.stem for image in other.images)
    by_stem = {image.stem: image for image in other.images}
    pairs = []
    for image in one.images:
        match = exact.get(image.name)
        if match is None and counts[0][image.stem] == counts[1][image.stem] == 1:
            match = by_stem[image.stem]
        if match is not None:
            pairs.append((image, match))
    return pairs


def _listed(path: Path) -> Iterator[ListedImage]:
    for folder, inner, files in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for file in files:
            if _is_image(file):
                whole = Path(folder, file)
                state = whole.stat()
                yield ListedImage(whole.relative_to(path).as_posix(), state.st_size, state.st_mtime_ns)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122  no Path a file
