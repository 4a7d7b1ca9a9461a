"""How far each Gaussian's attributes are from those of the Gaussian that stands for it in another scene."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from compress3d.splats.scene import SplatScene
from compress3d.splats.viewer.arrays import base_colours, covariances

Pairing = Literal["nearest", "same index"]
Attribute = Literal["colour", "position", "opacity", "shape"]

UNITS: dict[Attribute, str] = {
    "colour": "levels of 255",
    "position": "world units",
    "opacity": "0 to 1",
    "shape": "share of the covariance",
}
"""What the errors of an attribute are counted in."""


def pair(scene: SplatScene, twin: SplatScene, pairing: Pairing) -> Int64[Tensor, " N"]:
    """For each Gaussian of `scene`, the index of the one in `twin` that it is compared with.

    Args:
        scene: N Gaussians.
        twin: M Gaussians, at least one.
        pairing: "nearest" takes the one whose centre is closest; "same index" asks for as many Gaussians in both, in
            the same order (formats that sort them lose it).

    Raises:
        ValueError: the counts differ where the same index is asked for.
    """
    if pairing == "same index":
        if len(scene) != len(twin):
            raise ValueError(f"the same index needs equal counts; here are {len(scene):,} and {len(twin):,} Gaussians")
        return torch.arange(len(scene))
    from scipy.spatial import cKDTree

    nearest = cKDTree(twin.means.numpy(force=True)).query(scene.means.numpy(force=True))[1]
    return torch.from_numpy(np.asarray(nearest, np.int64))


def attribute_errors(
    scene: SplatScene, twin: SplatScene, index: Int64[Tensor, " N"], attribute: Attribute
) -> Float[Tensor, " N"]:
    """How far Gaussian i of `scene` is from Gaussian `index[i]` of `twin`, in the units of `UNITS`.

    Colours of degree 0: the mean over the channels of the absolute difference. Positions: the distance. Opacities: the
    absolute difference. Shapes: |S - S'| / |S| of the covariances in the Frobenius norm, which no sign of a quaternion
    and no order of the axes changes.
    """
    other = twin.select(index)
    if attribute == "colour":
        return torch.from_numpy(255 * np.abs(base_colours(scene) - base_colours(other)).mean(axis=1))
    if attribute == "position":
        return (scene.means - other.means).norm(dim=1)
    if attribute == "opacity":
        return (scene.peak_opacities() - other.peak_opacities()).abs()
    own = covariances(scene)
    return (own - covariances(other)).norm(dim=(1, 2)) / own.norm(dim=(1, 2)).clamp_min(torch.finfo(own.dtype).tiny)
