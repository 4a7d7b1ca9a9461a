"""Where people start to look at a scene: from outside, or from inside a room."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from compress3d.splats.scene import SplatScene
from compress3d.splats.views import UP, Vector, orbit, sample_views, scene_shape

_STEP_BACK = 1.4
"""Panels cover a part of the window, so that an object stands farther off than it does in a picture."""


class Viewpoint(NamedTuple):
    """A camera and what it turns around.

    Args:
        position: (3,) of the camera, in world units.
        target: (3,) what it looks at, and turns around.
        fov: field of view of the shorter side, in radians.
        radius: of the scene, in world units.
    """

    position: Float64[np.ndarray, " 3"]
    target: Float64[np.ndarray, " 3"]
    fov: float
    radius: float


def viewpoint(scene: SplatScene, up: Vector = UP) -> Viewpoint:
    """The first view of an orbit, some steps back; in a room, or an outdoor capture, a place in free space within it.

    Raises:
        ValueError: the scene has no visible Gaussian.
    """
    shape = scene_shape(scene, up)
    inside = shape.layout == "inside_out"
    camera = sample_views(scene, 1, 2, 2, up=up) if inside else orbit(scene, 1, 2, 2, up=up)
    position, forward = camera.positions[0].double().numpy(), camera.viewmats[0, 2, :3].double().numpy()
    distance = 0.5 * shape.median_radius if inside else float(np.linalg.norm(position - shape.centre))
    target = position + distance * forward
    if not inside:
        position = target - _STEP_BACK * distance * forward
    return Viewpoint(position, target, 2 * math.atan(1 / float(camera.Ks[0, 0, 0])), shape.radius)
