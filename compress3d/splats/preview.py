"""A small picture of a scene, and a line about it, for notebooks."""

from __future__ import annotations

import numpy as np
import torch

from compress3d.splats.rasterize import render
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import orbit
from secateur.quantities import format_bytes
from secateur.report.page import Image, as_pictures

SIDE = 320
"""Width and height of the picture in pixels."""


@torch.no_grad()
def preview(scene: SplatScene, side: int = SIDE) -> Image:
    """(side, side, 3) uint8: the scene from one side, y down, on white; all white where there is nothing to see."""
    try:
        cameras = orbit(scene, 1, side, side, azimuth_degrees=30.0)
    except ValueError:  # no Gaussian of it is visible
        return np.full((side, side, 3), 255, np.uint8)
    return as_pictures([render(scene, cameras)[0].cpu().numpy()])[0]


def facts(scene: SplatScene) -> str:
    """How many Gaussians of which degree, and their bytes as raw float32."""
    size = format_bytes(len(scene) * scene.bytes_per_gaussian)
    mode = ", antialiased" if scene.antialiased else ""
    return f"SplatScene: {len(scene):,} Gaussians, SH degree {scene.sh_degree}{mode}, {size} as float32"
