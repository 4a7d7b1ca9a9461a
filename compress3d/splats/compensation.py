"""Networks that mend the render of a pruned scene: the neural compensation of SUNDAE (arXiv 2405.00676, section 3.3).

Before training each of them gives back the render that it is given, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from secateur.training.seeding import seeded


class Splatted(NamedTuple):
    """What the rasteriser makes of one view.

    Args:
        image: (H, W, 3) the render, in front of its background.
        alpha: (H, W, 1) how much of the background is hidden.
        features: (H, W, C) the features, blended with the weights that blended the render, in front of zeros.
        background: (3,) RGB.
    """

    image: Float[Tensor, "H W 3"]
    alpha: Float[Tensor, "H W 1"]
    features: Float[Tensor, "H W C"]
    background: Float[Tensor, " 3"]


class CompensationHead(nn.Module, ABC):
    """What the rasteriser makes of a view -> a better render."""

    name: ClassVar[str]
    """What files call it."""

    features: int
    """Feature channels of each Gaussian that it wants."""

    @abstractmethod
    def forward(self, splatted: Splatted) -> Float[Tensor, "H W 3"]:
        """The compensated image."""

    @abstractmethod
    def settings(self) -> dict[str, int]:
        """The arguments that built it."""

    @classmethod
    def built(cls, settings: Mapping[str, int]) -> Self:
        """A head of these arguments.

        Raises:
            ValueError: one is missing, unknown or out of range.
        """
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"settings of a {cls.name}: {error}") from None


class FeatureHead(CompensationHead):
    """Three 3x3 convolutions that mix splatted features, colours and alpha over 7x7 pixels, and correct the render.

    It sees the scene on black and corrects both its colours and its alpha, so that what it learns holds in front of any
    background. The default has 4,644 parameters, 19 kB: what a few hundred Gaussians take.

    Args:
        features: channels of each Gaussian.
        width: channels inside.
        seed: of the weights; those of the last convolution are zero.

    Raises:
        ValueError: `features` or `width` is below 1.
    """

    name = "feature head"

    def __init__(self, features: int = 8, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        if features < 1 or width < 1:
            raise ValueError(f"features and width must be at least 1, got {features} and {width}")
        self.features, self.width = features, width
        with seeded(seed, torch.device("cpu")):
            self.inner = nn.Sequential(
                nn.Conv2d(4 + features, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            )
            self.last = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(_bias(self.last))

    def forward(self, splatted: Splatted) -> Float[Tensor, "H W 3"]:
        image, alpha, features, background = splatted
        on_black = image - (1 - alpha) * background
        seen = torch.cat([on_black, alpha, features], dim=2).permute(2, 0, 1)[None]
        correction = self.last(self.inner(seen))[0].permute(1, 2, 0)
        return image + (correction[..., :3] - correction[..., 3:] * background)

    def settings(self) -> dict[str, int]:
        return {"features": self.features, "width": self.width}


class GainUNet(CompensationHead):
    """The network of SUNDAE's released code: a U-Net on the render alone that gives each pixel and channel a gain.

    Four levels of conv 3x3, ReLU, conv 3x3, sigmoid; averages of 2x2 on the way down, bilinear on the way up. It sees
    the background as part of the render, so it learns for one background: train it with `backgrounds=0`.

    Args:
        width: channels of the first level, doubled at each level; 64 has the 7,783,043 parameters of the released code,
            31 MB, which is more than most pruned scenes; 4 has 30,683.
        seed: of the weights; those of the last layer are 0 with a bias of 1.

    Raises:
        ValueError: `width` is below 1.
    """

    name = "gain U-Net"
    features = 0

    _LEVELS: ClassVar[int] = 4

    def __init__(self, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.width = width
        widths = [width * 2**level for level in range(self._LEVELS)]
        with seeded(seed, torch.device("cpu")):
            self.down = nn.ModuleList(_block(one, two) for one, two in zip([3, *widths], widths, strict=False))
            self.up = nn.ModuleList(_block(3 * one, one) for one in reversed(widths[:-1]))
            self.last = nn.Conv2d(width, 3, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.ones_(_bias(self.last))

    def forward(self, splatted: Splatted) -> Float[Tensor, "H W 3"]:
        """The compensated image.

        Raises:
            ValueError: the image is smaller than 8 pixels, which three halvings leave nothing of.
        """
        image = splatted.image
        least = 2 ** (self._LEVELS - 1)
        if min(image.shape[:2]) < least:
            raise ValueError(f"a {self.name} needs images of at least {least}x{least} pixels")
        levels = [self.down[0](image.permute(2, 0, 1)[None])]
        for block in self.down[1:]:
            levels.append(block(avg_pool2d(levels[-1], 2)))
        seen = levels.pop()
        for block in self.up:
            finer = levels.pop()
            seen = interpolate(seen, scale_factor=2, mode="bilinear", align_corners=True)
            rows, columns = finer.shape[2] - seen.shape[2], finer.shape[3] - seen.shape[3]
            seen = block(torch.cat([finer, pad(seen, (0, columns, 0, rows))], dim=1))
        return self.last(seen)[0].permute(1, 2, 0) * image

    def settings(self) -> dict[str, int]:
        return {"width": self.width}


HEADS: tuple[type[CompensationHead], ...] = (FeatureHead, GainUNet)
"""Those that files may name."""


def _block(inputs: int, outputs: int) -> nn.Sequential:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    # A sigmoid flattens what it passes on to a quarter: with torch's weights, four levels of them leave a grey.
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    nn.init.xavier_normal_(second.weight, gain=4.0)
    nn.init.zeros_(_bias(first))
    nn.init.zeros_(_bias(second))
    return nn.Sequential(first, nn.ReLU(), second, nn.Sigmoid())


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
