"""Images with labels, and the batches that networks train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from secateur.datasets import Labelled
from secateur.training import Shuffled, generator_at
from vit.augmentation import Augmentation
from vit.images import ImagePreparation

Batch = dict[str, Tensor]
"""What networks of transformers take: "pixel_values" (N, C, H, W), and "labels"."""

FORMATS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""Endings of the files that are read as images."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
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


def read_folder(folder: Path, preparation: ImagePreparation) -> LabelledImages:
    """Images in a folder a class: `folder/cat/1.png`, `folder/dog/2.jpg`; classes and files in alphabetical order.

    Args:
        folder: the folder of folders; files that do not end like images are left alone, rotation tags are heeded.
        preparation: of the model that is to see them: `vit.load_model(...).preparation`.

    Raises:
        FileNotFoundError: there is no such folder, or it has no folders with images.
        ValueError: some images cannot be read: says how many, and which; or they are not prepared to one size.
    """
    size, channels = preparation.output_size, len(preparation.mean)
    if size is None:
        raise ValueError("images of a batch have one size: the preparation needs size or crop")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; it should hold a folder for each class")
    files = [(path, found.name) for found in sorted(folder.iterdir()) if found.is_dir() for path in _images_in(found)]
    if not files:
        raise FileNotFoundError(f"{folder} has no folders with images: {folder}/<class>/<name>.png is what is needed")
    images = torch.zeros(len(files), channels, *size, dtype=torch.uint8)
    bytes_only = replace(preparation, scale=1.0, mean=(0.0,) * channels, std=(1.0,) * channels)
    bad: list[str] = []
    for index, (path, _) in enumerate(files):
        try:
            with Image.open(path) as file:
                images[index] = bytes_only(ImageOps.exif_transpose(file))[0].to(torch.uint8)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            bad.append(f"{path} ({error})")
    if bad:
        more = f", and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(f"{len(bad)} of {len(files)} images cannot be read: {'; '.join(bad[:5])}{more}")
    classes = tuple(dict.fromkeys(name for _, name in files))
    labels = torch.tensor([classes.index(name) for _, name in files])
    mean, std = (tuple(one / (255 * preparation.scale) for one in of) for of in (preparation.mean, preparation.std))
    return LabelledImages(images, labels, classes, mean, std)


def _images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
