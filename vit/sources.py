"""Where a recipe's images come from: the demo's, folders of your own, or none at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch

from secateur.datasets import digits
from secateur.training import generator_at
from vit.data import Images, LabelledImages, read_folder, split
from vit.demo import fashion_splits
from vit.inputs import image_shape
from vit.models import LoadedModel


@dataclass(frozen=True, eq=False)
class ImageParts:
    """Images for a run, none of them in two parts.

    Args:
        training: to score and to train with.
        validation: to choose the best weights with.
        test: to judge by.
    """

    training: LabelledImages
    validation: LabelledImages
    test: LabelledImages


class ImageSource(Protocol):
    """Images of a recipe: a class with typed fields, which the recipe names by its path."""

    def gather(self, model: LoadedModel, /) -> ImageParts:
        """The images, as the model is to see them."""
        ...


@dataclass(frozen=True)
class DemoImages:
    """What the demo models see.

    Args:
        name: Fashion-MNIST, or scikit-learn's digits.
        most: images of each part; None: all.

    Raises:
        ValueError: `most` is below 1.
    """

    name: Literal["fashion", "digits"] = "fashion"
    most: int | None = None

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be at least 1, got {self.most}")

    def gather(self, model: LoadedModel) -> ImageParts:
        """The three parts.

        Raises:
            FileNotFoundError: Fashion-MNIST is absent; the message says how to get it.
        """
        if self.name == "fashion":
            parts = fashion_splits()
        else:
            training, rest = split(LabelledImages.of(digits()), 600)
            parts = training, rest.subset(slice(150)), rest.subset(slice(150, None))
        training, validation, test = (part.subset(slice(self.most)) for part in parts)
        return ImageParts(training, validation, test)


@dataclass(frozen=True)
class ImageFolders:
    """Folders of images, a folder a class: `folder/cat/1.png`. Images are prepared as the model's file says.

    For models without classes, such as SAM's encoder, one class is enough.

    Args:
        training: folder to score, train and choose with.
        test: folder to judge by; None: a share of the other.
        held_out: share of `training` that is held out to choose with, and as large a one to judge by without `test`.
        seed: of what is held out.

    Raises:
        ValueError: the share is out of range.
    """

    training: Path
    test: Path | None = None
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"held_out must be above 0 and below 0.5, got {self.held_out}")

    def gather(self, model: LoadedModel) -> ImageParts:
        """The three parts.

        Raises:
            FileNotFoundError: a folder is absent or empty.
            ValueError: some images cannot be read, the two folders have other classes, or there are too few images.
        """
        preparation = model.preparation()
        training = read_folder(self.training, preparation)
        held = max(1, round(len(training) * self.held_out))
        training, validation = split(training, held, self.seed)
        if self.test is None:
            training, test = split(training, held, self.seed + 1)
            return ImageParts(training, validation, test)
        test = read_folder(self.test, preparation)
        if test.classes != training.classes:
            raise ValueError(
                f"{self.test} has the classes {_shortened(test.classes)}, {self.training} has "
                f"{_shortened(training.classes)}: they need the same folders"
            )
        return ImageParts(training, validation, test)


@dataclass(frozen=True)
class NoiseImages:
    """Random bytes, classes in turn: to try a recipe out on random weights, and to measure sizes and times.

    Args:
        count: images of each part.
        seed: of the bytes.

    Raises:
        ValueError: there is no image.
    """

    count: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")

    def gather(self, model: LoadedModel) -> ImageParts:
        """The three parts."""
        names = class_names(model)
        parts = []
        for part in range(3):
            shape = (self.count, *image_shape(model.network))
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator_at(self.seed, part))
            parts.append(LabelledImages(images, torch.arange(self.count) % len(names), names))
        return ImageParts(*parts)


def class_names(model: LoadedModel) -> tuple[str, ...]:
    """The classes that a model's configuration names; one where it has none."""
    config = getattr(model.network, "config", None)
    if not has_classes(model.network):
        return ("image",)
    named = getattr(config, "id2label", None) or {}
    return tuple(str(named.get(index, index)) for index in range(int(getattr(config, "num_labels", 1))))


def has_classes(network: torch.nn.Module) -> bool:
    """Whether the network gives logits of classes of an image, by the class of transformers that it has."""
    return "ForImageClassification" in type(network).__name__


def check_images(images: Images, model: LoadedModel) -> None:
    """Raise ValueError, with what would be right, for images that the model cannot read or classes that it lacks."""
    channels, height, width = image_shape(model.network)
    found = images.shape
    if found != (channels, height, width):
        raise ValueError(
            f"images are {found[1]} x {found[2]} pixels with {found[0]} channels; {model.name} takes {height} x "
            f"{width} pixels with {channels}"
        )
    classes = class_names(model)
    if has_classes(model.network) and len(images.classes) != len(classes):
        raise ValueError(
            f"labels have {len(images.classes)} classes ({_shortened(images.classes)}), the model has {len(classes)} "
            f"({_shortened(classes)})"
        )


def _shortened(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
