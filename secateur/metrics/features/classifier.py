"""Features of a small convolutional classifier: what distances and class accuracy use where no download is possible."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from secateur.metrics.features.interface import check_images, hash_of_weights
from secateur.tensor_files import TensorFormat

FORMAT = TensorFormat("secateur image classifier", 1)


class SmallClassifier(nn.Module):
    """3x3 convolutions with batch normalisation and ReLU, the mean over positions, and one linear layer.

    Args:
        size: height and width of the grey images, in pixels.
        widths: channels of each convolution; the last is the length of the feature vector.
        strides: of each convolution.
        classes: number of classes.
    """

    def __init__(self, size: int, widths: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.size, self.widths, self.strides = size, widths, strides
        layers: list[nn.Module] = []
        for before, width, stride in zip((1, *widths), widths, strides, strict=False):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)

    def embed(self, images: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N D"]:
        """The vectors before the last layer, of images in [0, 1]."""
        return self.body(2 * images - 1).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N classes"]:
        return self.head(self.embed(images))


@dataclass(frozen=True)
class ClassifierFeatures:
    """A trained classifier as `Features`, and as a judge of what class an image shows.

    Args:
        name: of the features.
        network: the classifier, in evaluation mode.
        classes: a name a class.
        card: what it was trained on and how good it is: plain values by name.
    """

    name: str
    network: SmallClassifier
    classes: tuple[str, ...]
    card: Mapping[str, Any]

    @property
    def dimensions(self) -> int:
        return self.network.widths[-1]

    @cached_property
    def weights_sha256(self) -> str:
        return hash_of_weights(self.network.state_dict())

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N 1 H W"], /) -> Float[Tensor, "N D"]:
        """The vectors of grey images in [0, 1].

        Raises:
            ValueError: the images are not (N, 1, H, W) of the classifier's size, or not finite.
        """
        return self.network.embed(self._prepared(images))

    @torch.no_grad()
    def classify(self, images: Float[Tensor, "N 1 H W"]) -> Int64[Tensor, " N"]:
        """The class that each grey image in [0, 1] most likely shows; raises as the call does."""
        return self.network(self._prepared(images)).argmax(dim=1)

    def to(self, device: torch.device | str) -> Self:
        """The same with its network on `device`."""
        self.network.to(device)
        return self

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write a safetensors file; returns its bytes."""
        size, widths, strides = self.network.size, self.network.widths, self.network.strides
        shape = {"size": size, "widths": list(widths), "strides": list(strides)}
        fields = {"name": self.name, "classes": list(self.classes), "card": dict(self.card), **shape}
        return FORMAT.save(path, {name: value.cpu() for name, value in self.network.state_dict().items()}, fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no classifier of ours, or damaged.
        """
        return FORMAT.load(path, _check, cls._restored)

    @classmethod
    def _restored(cls, header: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        classes = tuple(header["classes"])
        shape = header["size"], tuple(header["widths"]), tuple(header["strides"])
        with torch.device("meta"):  # draws nothing from the global generator
            network = SmallClassifier(*shape, len(classes))
        network.load_state_dict(tensors, assign=True)
        return cls(header["name"], network.requires_grad_(False).eval(), classes, header["card"])

    def _prepared(self, images: Tensor) -> Tensor:
        check_images(images)
        size = self.network.size
        if images.shape[1:] != (1, size, size):
            raise ValueError(f"{self.name} looks at grey images (N, 1, {size}, {size}), got {tuple(images.shape)}")
        weight = self.network.head.weight
        return images.to(weight.device, weight.dtype).clamp(0.0, 1.0)


def _check(header: dict[str, Any]) -> None:
    numbers = [header.get("size"), *(header.get("widths") or [None]), *(header.get("strides") or [None])]
    if not all(isinstance(number, int) and 0 < number <= 4096 for number in numbers):
        raise ValueError("size, widths and strides must be whole numbers from 1 to 4096")
    if len(header["widths"]) != len(header["strides"]):
        raise ValueError(f"{len(header['widths'])} widths and {len(header['strides'])} strides do not fit together")
    names = header.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError("classes must be a list of names")
    if not isinstance(header.get("name"), str) or not isinstance(header.get("card"), dict):
        raise ValueError("the header lacks a name or a card")
