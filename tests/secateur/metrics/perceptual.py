"""LPIPS on networks with random weights: the real ones are a download."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from secateur.metrics.perceptual import Backbone, PerceptualDistance, backbone_layers


def random_state(backbone: Backbone) -> dict[str, Tensor]:
    """Weights under the names of the published files, large enough that activations do not die away."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        parts = backbone_layers(backbone)
    state = {}
    for part in parts:
        for name, value in part.state_dict().items():
            fan_in = max(1, value[0].numel())
            state[f"features.{name}"] = torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


@cache
def random_distance(backbone: Backbone) -> PerceptualDistance:
    """LPIPS on such a network."""
    return PerceptualDistance.of(backbone, random_state(backbone), "0" * 64)
