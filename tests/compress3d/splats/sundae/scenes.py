"""A small compensated scene whose head and features do something."""

from __future__ import annotations

from copy import deepcopy

import torch

from compress3d.splats.compensation import CompensationHead, FeatureHead
from compress3d.splats.sundae import CompensatedScene
from compress3d.splats.views import sample_views
from tests.compress3d.splats.rasterize.clouds import rounded, scene_of

ORIGINAL = scene_of(rounded(150, size=0.25), degree=1)
VIEWS = sample_views(ORIGINAL, 8, 40, 36, layout="outside_in")


def stirred(head: CompensationHead | None = None, seed: int = 5) -> CompensatedScene:
    """Random features, and a head whose last layer is no longer what it began as."""
    random = torch.Generator().manual_seed(seed)
    head = FeatureHead(3, 4) if head is None else deepcopy(head)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    features = torch.randn(len(ORIGINAL), head.features, generator=random)
    return CompensatedScene(ORIGINAL, features, head)
