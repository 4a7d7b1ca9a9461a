"""A scene that is quick to draw."""

import torch

from compress3d.cameras import Cameras
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import sample_views


def scene(count: int = 200, seed: int = 0) -> SplatScene:
    """A ball of opaque Gaussians of all colours, radius 1: filled, for a shell alone would pass for a room."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    radii = torch.rand(count, 1, generator=generator) ** (1 / 3)
    means = radii * torch.nn.functional.normalize(normal(count, 3), dim=1)
    scales = 0.3 * normal(count, 3) - 2.5
    return SplatScene(means, normal(count, 4), scales, normal(count) + 2, normal(count, 1, 3), torch.zeros(count, 0, 3))


def with_harmonics(ball: SplatScene, degree: int = 3, seed: int = 1, strength: float = 0.2) -> SplatScene:
    """The same with random spherical harmonics of degrees 1 to `degree`."""
    generator = torch.Generator().manual_seed(seed)
    shN = strength * torch.randn(len(ball), (degree + 1) ** 2 - 1, 3, generator=generator)
    return ball.with_tensors(shN=shN)


def views(count: int = 4) -> Cameras:
    """Views of it, 48 x 40 pixels."""
    return sample_views(scene(), count, 48, 40)
