"""Images with labels, and the batches that networks train on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from secateur.datasets import Labelled
from secateur.evaluation.chunks import Unreadable
from secateur.training import Shuffled, generator_at
from vit.augmentation import Augmentation
from vit.images import ImagePreparation

Batch = dict[str, Tensor]
"""What networks of transformers take: "pixel_values" (N, C, H, W), and "labels"."""

Item = tuple[UInt8[Tensor, "C H W"], Int64[Tensor, "..."]]
"""An image and its label."""

FORMATS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Endings of the files that are read as images."""


@dataclass(frozen=True, eq=False)
class LabelledImages(Dataset[Item]):
    """Images of one size, each with a class or a map of classes.

    Args:
        images: (N, C, H, W) uint8, 0 to 255.
        labels: (N,) a class each, or (N, H, W) a class for each pixel; int64, from 0.
        classes: a name a class.
        mean: of a pixel in [0, 1], which networks see as 0; 0.5 is what transformers' ViTs have.
        std: what they see as 1.

    Raises:
        ValueError: shapes or labels do not fit together.
    """

    images: UInt8[Tensor, "N C H W"]
    labels: Int64[Tensor, "N ..."]
    classes: tuple[str, ...]
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        count, channels, *size = self.images.shape
        if self.labels.shape not in ((count,), (count, *size)):
            raise ValueError(
                f"{count} images of {tuple(size)} pixels need labels ({count},) or {(count, *size)}, "
                f"got {tuple(self.labels.shape)}"
            )
        if self.labels.numel() and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            found = int(self.labels.min()), int(self.labels.max())
            raise ValueError(f"labels must be 0 to {len(self.classes) - 1}, got {found[0]} to {found[1]}")
        if any(len(values) not in (1, channels) for values in (self.mean, self.std)) or min(self.std) <= 0:
            raise ValueError(f"mean and std need 1 or {channels} values, std above 0, got {self.mean} and {self.std}")

    @classmethod
    def of(cls, data: Labelled) -> LabelledImages:
        """The same images with one channel."""
        return cls(data.images[:, None], data.labels, data.classes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        return self.images[index], self.labels[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of each image."""
        return tuple(self.images.shape[1:])

    def signature(self) -> str:
        """Of pixels and labels, by which a change shows."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Int64[Tensor, " M"] | slice) -> LabelledImages:
        """The images at these places."""
        return LabelledImages(self.images[indices], self.labels[indices], self.classes, self.mean, self.std)

    def pixel_values(self, indices: Int64[Tensor, " M"] | slice = slice(None)) -> Float[Tensor, "M C H W"]:
        """The images at these places as float32, as networks see them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.images[indices].float() / 255 - mean) / std

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """All images, once, `batch_size` at a time."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield {"pixel_values": self.pixel_values(indices), "labels": self.labels[indices]}


@dataclass(frozen=True, eq=False)
class ImageBatches:
    """Shuffled and augmented batches, each a pure function of its step: for `secateur.training.fit`.

    Args:
        data: the images.
        batch_size: images in a batch.
        seed: of order and augmentation.
        augmentation: what happens to them.

    Raises:
        ValueError: there are no images, or `batch_size` is below 1.
    """

    data: LabelledImages
    batch_size: int
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        Shuffled(len(self.data), self.batch_size, self.seed)

    def batch_at(self, step: int, /) -> Batch:
        """The batch of `step`; labels are (N, classes) shares where images are mixed."""
        indices = Shuffled(len(self.data), self.batch_size, self.seed).batch_at(step)
        images, labels = self.augmentation(
            self.data.pixel_values(indices),
            self.data.labels[indices],
            len(self.data.classes),
            generator_at(self.seed + 1, step),
        )
        return {"pixel_values": images, "labels": labels}


def split(data: LabelledImages, held_out: int, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """(what to train on, `held_out` images to validate on), drawn at random, neither in order.

    Raises:
        ValueError: one of the two would be empty.
    """
    if not 0 < held_out < len(data):
        raise ValueError(f"of {len(data)} images 1 to {len(data) - 1} can be held out, got {held_out}")
    order = torch.randperm(len(data), generator=generator_at(seed, 0))
    return data.subset(order[held_out:]), data.subset(order[:held_out])


@dataclass(frozen=True, eq=False)
class FolderImages(Dataset[Item | Unreadable]):
    """Images in a folder a class, each decoded when it is asked for: `folder/cat/1.png`, `folder/dog/2.jpg`.

    Args:
        files: classes and files in alphabetical order.
        labels: (N,) a class each.
        classes: names of the folders.
        preparation: what becomes of an image; its size is that of all.
    """

    files: tuple[Path, ...]
    labels: Int64[Tensor, " N"]
    classes: tuple[str, ...]
    preparation: ImagePreparation

    @classmethod
    def listed(cls, folder: Path, preparation: ImagePreparation) -> FolderImages:
        """List a folder of folders; files that do not end like images are left alone.

        Args:
            folder: the folder of folders.
            preparation: of the model that is to see the images: `vit.load_model(...).preparation`.

        Raises:
            FileNotFoundError: there is no such folder, or it has no folders with images.
            ValueError: images are not prepared to one size.
        """
        if preparation.output_size is None:
            raise ValueError("images of a batch have one size: the preparation needs size or crop")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder; it should hold a folder for each class")
        files = [
            (path, found.name) for found in sorted(folder.iterdir()) if found.is_dir() for path in _images_in(found)
        ]
        if not files:
            raise FileNotFoundError(
                f"{folder} has no folders with images: {folder}/<class>/<name>.png is what is needed"
            )
        classes = tuple(dict.fromkeys(name for _, name in files))
        places = {name: place for place, name in enumerate(classes)}
        labels = torch.tensor([places[name] for _, name in files])
        return cls(tuple(path for path, _ in files), labels, classes, preparation)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item | Unreadable:
        """The image with its rotation tag heeded, as bytes of the preparation's size."""
        path, channels = self.files[index], self.shape[0]
        bytes_only = replace(self.preparation, scale=1.0, mean=(0.0,) * channels, std=(1.0,) * channels)
        try:
            with Image.open(path) as file:
                return bytes_only(ImageOps.exif_transpose(file))[0].to(torch.uint8), self.labels[index]
        except FileNotFoundError:
            return Unreadable(f"{path}: no such file", missing=True)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return Unreadable(f"{path}: cannot be read ({error})")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of each image."""
        return len(self.preparation.mean), *(self.preparation.output_size or ())

    @property
    def mean(self) -> tuple[float, ...]:
        """Of a pixel in [0, 1], which networks see as 0."""
        return tuple(one / (255 * self.preparation.scale) for one in self.preparation.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """What they see as 1."""
        return tuple(one / (255 * self.preparation.scale) for one in self.preparation.std)

    def signature(self) -> list[tuple[str, int, int]]:
        """Names, bytes and times of the files, by which a change shows."""
        found = [(path, path.stat()) for path in self.files]
        return [(str(path), one.st_size, one.st_mtime_ns) for path, one in found]


Images = LabelledImages | FolderImages
"""Images with labels, in memory or in a folder."""


def held(items: Sequence[Item | Unreadable], images: Images) -> LabelledImages:
    """Some of the images, decoded.

    Raises:
        FileNotFoundError: one is gone.
        ValueError: one cannot be read; names the file.
    """
    read = []
    for item in items:
        if isinstance(item, Unreadable):
            raise item.error()
        read.append(item)
    pixels, labels = (torch.stack(one) for one in zip(*read, strict=True))
    return LabelledImages(pixels, labels, images.classes, images.mean, images.std)


def read_folder(folder: Path, preparation: ImagePreparation) -> LabelledImages:
    """All images of a folder of folders; see `FolderImages`.

    Raises:
        FileNotFoundError: there is no such folder, or it has no folders with images.
        ValueError: some images cannot be read: says how many, and which; or they are not prepared to one size.
    """
    listed = FolderImages.listed(folder, preparation)
    pixels = torch.zeros(len(listed), *listed.shape, dtype=torch.uint8)
    bad: list[str] = []
    for index in range(len(listed)):
        item = listed[index]
        if isinstance(item, Unreadable):
            bad.append(item.message)
        else:
            pixels[index] = item[0]
    if bad:
        more = f", and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{len(bad)} of {len(listed)} images: {'; '.join(bad[:5])}{more}")
    return LabelledImages(pixels, listed.labels, listed.classes, listed.mean, listed.std)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
