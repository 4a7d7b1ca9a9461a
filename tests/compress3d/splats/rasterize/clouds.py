"""Random Gaussians and cameras for the rasteriser's tests, with the awkward ones among them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from compress3d.splats.views import look_at


class Cloud(NamedTuple):
    """Activated Gaussians: means (N, 3), quats (N, 4), scales (N, 3), opacities (N,), features (N, D)."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor

    def select(self, index: Tensor) -> Cloud:
        """The Gaussians at `index`."""
        return Cloud(*(tensor[index] for tensor in self))

    @classmethod
    def join(cls, *clouds: Cloud) -> Cloud:
        return cls(*(torch.cat(tensors) for tensors in zip(*clouds, strict=True)))


class Pinhole(NamedTuple):
    """One camera: viewmat (4, 4), K (3, 3), image size in pixels."""

    viewmat: Tensor
    K: Tensor
    width: int
    height: int

    @property
    def cameras(self) -> Cameras:
        return Cameras(self.viewmat[None], self.K[None], self.width, self.height)


def pinhole(
    width: int, height: int, focal: float = 60.0, centre: tuple[float, float] = (0.5, 0.5), azimuth: float = 0.3
) -> Pinhole:
    """A camera at distance 4 that looks at the origin; `centre` is the principal point in shares of the image."""
    position = 4.0 * np.array([[math.sin(azimuth), -0.3, math.cos(azimuth)]])
    K = torch.tensor([[focal, 0, centre[0] * width], [0, 1.1 * focal, centre[1] * height], [0, 0, 1]])
    return Pinhole(look_at(position, np.zeros((1, 3)))[0], K, width, height)


def rounded(count: int, seed: int = 0, channels: int = 3, size: float = 0.15) -> Cloud:
    """Well-behaved Gaussians: a ball of them, none thinner than a tenth of its length."""
    random = torch.Generator().manual_seed(seed)
    return Cloud(
        0.7 * torch.randn(count, 3, generator=random),
        torch.randn(count, 4, generator=random),
        size * torch.exp(-2.0 * torch.rand(count, 3, generator=random)),
        0.02 + 0.95 * torch.rand(count, generator=random),
        torch.rand(count, channels, generator=random),
    )


def awkward(camera: Pinhole, seed: int = 0, channels: int = 3) -> Cloud:
    """Gaussians behind the camera, off the screen, giant, below a pixel, solid and transparent."""
    random = torch.Generator().manual_seed(seed)
    rotation, translation = camera.viewmat[:3, :3], camera.viewmat[:3, 3]
    kinds = {
        "behind": ((0, 0, -2), (0.3, 0.3, 0.3), 0.9),
        "before the near plane": ((0, 0, 0.005), (0.1, 0.1, 0.1), 0.9),
        "far off the screen": ((30, 5, 3.3), (0.2, 0.2, 0.2), 0.9),
        "beyond the clamp, reaching in": ((4, -3, 1.9), (2.0, 1.5, 1.0), 0.7),
        "giant": ((0.2, 0.1, 6), (90.0, 70.0, 0.5), 0.4),
        "below a pixel": ((0.1, 0.2, 3), (1e-5, 1e-5, 1e-5), 0.9),
        "nothing at all": ((0.1, -0.2, 3.1), (1e-20, 1e-20, 1e-20), 0.9),
        "solid": ((-0.2, 0.1, 2.5), (0.1, 0.15, 0.1), 1.0),
        "solid behind solid": ((-0.2, 0.1, 2.8), (0.2, 0.2, 0.1), 1.0),
        "transparent": ((0, 0, 2), (0.5, 0.5, 0.5), 0.0035),
        "just visible": ((0, 0, 2.1), (0.5, 0.5, 0.5), 0.0041),
        "absent": ((0, 0, 2.2), (0.5, 0.5, 0.5), 0.0),
    }
    places, scales, opacities = (torch.tensor(column) for column in zip(*kinds.values(), strict=True))
    return Cloud(
        (places - translation) @ rotation,
        torch.randn(len(kinds), 4, generator=random),
        scales,
        opacities,
        torch.rand(len(kinds), channels, generator=random),
    )


def scene_of(cloud: Cloud, degree: int = 0, seed: int = 0, antialiased: bool = False) -> SplatScene:
    """A scene of the same Gaussians; colours vary around the features, all of them between black and white or so."""
    random = torch.Generator().manual_seed(seed)
    count = len(cloud.means)
    return SplatScene(
        cloud.means,
        cloud.quats,
        torch.log(cloud.scales),
        torch.logit(cloud.opacities),
        ((cloud.features[:, :3] - 0.5) / 0.28209479)[:, None],
        0.1 * torch.randn(count, SH_COEFFICIENTS[degree], 3, generator=random),
        antialiased,
    )
