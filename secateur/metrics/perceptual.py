"""Learned perceptual distance between images (LPIPS: Zhang et al. 2018, arXiv 1801.03924), version 0.1.

The distance is a weighted one between unit-length activations of AlexNet or VGG-16. The weights between them come with
torchmetrics; those of the network are a file that is downloaded once. torchvision is not needed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.metrics.features.interface import check_images

Backbone = Literal["alex", "vgg"]

WEIGHTS_URLS: dict[Backbone, str] = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
}
"""Weights trained on ImageNet, as torchvision publishes them."""

_HASHES: dict[str, Backbone] = {"7be5be79": "alex", "4df8aa71": "alex", "397923af": "vgg"}
"""First digits of the SHA-256 of a file, with which its published name ends; AlexNet was published twice."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_EPSILON = 1e-8


def backbone_layers(backbone: Backbone) -> list[nn.Sequential]:
    """The five parts of a network whose ends are compared, without weights.

    The children are named as in the published files ("0", "3", ... within "features").
    """
    parts = _alexnet() if backbone == "alex" else _vgg16()
    numbered, index = [], 0
    for part in parts:
        named = nn.Sequential()
        for layer in part:
            named.add_module(str(index), layer)
            index += 1
        numbered.append(named)
    return numbered


def _alexnet() -> list[list[nn.Module]]:
    """Convolutions of AlexNet's second form (Krizhevsky 2014, arXiv 1404.5997)."""
    pool = nn.MaxPool2d(3, 2)
    return [
        [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU()],
        [pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
        [pool, nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
        [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
    ]


def _vgg16() -> list[list[nn.Module]]:
    """Convolutions of VGG's configuration D (Simonyan and Zisserman 2014, arXiv 1409.1556, table 1)."""
    parts: list[list[nn.Module]] = []
    before = 3
    for widths in _VGG_WIDTHS:
        part: list[nn.Module] = [nn.MaxPool2d(2, 2)] if parts else []
        for width in widths:
            part += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        parts.append(part)
    return parts


@dataclass(frozen=True)
class PerceptualDistance:
    """LPIPS with one network. Distances of two networks cannot be compared: `name` stands beside each.

    Args:
        backbone: "alex" or "vgg".
        layers: the five parts of the network, frozen.
        weights: of the channels at the end of each part, (1, channels, 1, 1), none below 0.
        weights_sha256: of the network's file.
    """

    backbone: Backbone
    layers: tuple[nn.Sequential, ...]
    weights: tuple[Float[Tensor, "1 channels 1 1"], ...]
    weights_sha256: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The distance on a network whose file was downloaded from one of `WEIGHTS_URLS`.

        Raises:
            FileNotFoundError: there is no such file; says where it can be had.
            ValueError: the file is another one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; LPIPS takes {WEIGHTS_URLS['alex']} or {WEIGHTS_URLS['vgg']}"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        backbone = _HASHES.get(digest[:8])
        if backbone is None:
            known = ", ".join(_HASHES)
            raise ValueError(f"{path}: not a network of LPIPS: SHA-256 {digest[:8]}, none of {known}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:
            raise ValueError(f"{path}: no file of weights ({error})") from error
        return cls.of(backbone, state, digest)

    @classmethod
    def of(cls, backbone: Backbone, state: Mapping[str, Tensor], weights_sha256: str) -> Self:
        """The distance on a network with this state; names are those of the published files ("features.0.weight").

        Raises:
            ValueError: the state lacks a tensor, or one has another shape.
        """
        with torch.device("meta"):  # draws nothing from the global generator
            layers = backbone_layers(backbone)
        for part in layers:
            own = {name: state[f"features.{name}"] for name in part.state_dict() if f"features.{name}" in state}
            try:
                part.load_state_dict(own, assign=True)
            except RuntimeError as error:
                raise ValueError(f"not the weights of {backbone}: {error}") from error
            part.requires_grad_(False).eval()
        return cls(backbone, tuple(layers), _channel_weights(backbone), weights_sha256)

    @property
    def name(self) -> str:
        return f"LPIPS-{self.backbone}"

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N 3 H W"], reference: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
        """The distance of each image in [0, 1] from its reference, on the CPU; 0 where they are equal.

        Raises:
            ValueError: the shapes differ, are not (N, 3, H, W), or too small; or an image is not finite.
        """
        check_images(images)
        check_images(reference)
        if images.shape != reference.shape or images.shape[1] != 3:
            raise ValueError(f"{self.name} compares (N, 3, H, W), got {tuple(images.shape)}, {tuple(reference.shape)}")
        if min(images.shape[2:]) < self.smallest:
            raise ValueError(
                f"{self.name} needs at least {self.smallest} pixels on each side, got {tuple(images.shape)}"
            )
        one, other = (self._prepared(side) for side in (images, reference))
        total = one.new_zeros(len(one))
        for part, weight in zip(self.layers, self.weights, strict=True):
            one, other = part(one), part(other)
            apart = (_unit(one) - _unit(other)).square()
            total = total + (apart * weight).sum(dim=1).mean(dim=(1, 2))
        return total.cpu()

    @property
    def smallest(self) -> int:
        """The fewest pixels of a side that reach the last part."""
        return 31 if self.backbone == "alex" else 16

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        layers = tuple(part.to(device) for part in self.layers)
        return type(self)(self.backbone, layers, tuple(one.to(device) for one in self.weights), self.weights_sha256)

    def _prepared(self, images: Tensor) -> Tensor:
        device = self.weights[0].device
        shift, scale = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        return (2 * images.to(device, torch.float32).clamp(0.0, 1.0) - 1 - shift) / scale


def _unit(activations: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """Channels of unit length at each position."""
    return activations / (_EPSILON + activations.square().sum(dim=1, keepdim=True)).sqrt()


def _channel_weights(backbone: Backbone) -> tuple[Tensor, ...]:
    """What the authors learnt from judgements of people."""
    from torchmetrics.functional.image import lpips as shipped

    path = Path(shipped.__file__).parent / "lpips_models" / f"{backbone}.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    return tuple(state[f"lin{index}.model.1.weight"] for index in range(5))
