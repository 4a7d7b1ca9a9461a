"""What viser draws: centres, covariances, one colour and one opacity a Gaussian."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from compress3d.splats.formats.quantization import colors_from_sh0
from compress3d.splats.importance import OpacityArea
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.maths import topk_mask

_TYPICAL_DEVIATION = 0.1
"""Of the median Gaussian, in units of the arrays: viser holds covariances in half precision, 6e-8 to 65504."""

_LARGEST_VARIANCE = 6e4


class SplatArrays(NamedTuple):
    """Arguments of viser's `add_gaussian_splats`, in units of `unit` world units.

    Args:
        centers: (N, 3) float32.
        covariances: (N, 3, 3) float32, no variance above what half precision holds.
        rgbs: (N, 3) float32 in [0, 1]: the colour of degree 0, which is the same from everywhere.
        opacities: (N, 1) float32 in [0, 1].
        unit: world units that one unit of the arrays stands for.
    """

    centers: NDArray[np.float32]
    covariances: NDArray[np.float32]
    rgbs: NDArray[np.float32]
    opacities: NDArray[np.float32]
    unit: float


def splat_arrays(scene: SplatScene) -> SplatArrays:
    """The arrays of a scene; at least one Gaussian."""
    unit = _unit(scene)
    spread = covariances(scene) / unit**2
    largest = spread.diagonal(dim1=1, dim2=2).amax(dim=1)
    spread *= (_LARGEST_VARIANCE / largest).clamp_max(1)[:, None, None]
    return SplatArrays(
        (scene.means / unit).numpy(force=True),
        spread.numpy(force=True),
        base_colours(scene),
        scene.peak_opacities().numpy(force=True)[:, None],
        unit,
    )


def base_colours(scene: SplatScene) -> Float[np.ndarray, "N 3"]:
    """Colours of degree 0 within the gamut."""
    return np.clip(colors_from_sh0(scene.sh0[:, 0].numpy(force=True)), 0, 1)


def covariances(scene: SplatScene) -> Float[Tensor, "N 3 3"]:
    """R diag(s^2) R^T in square world units, with R the rotation of the normalised quaternion."""
    w, x, y, z = torch.nn.functional.normalize(scene.quats.detach(), dim=1).unbind(dim=1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    factor = torch.stack(rows, dim=1).reshape(-1, 3, 3) * torch.exp(scene.scales.detach())[:, None, :]
    return factor @ factor.transpose(1, 2)


def most_visible(scene: SplatScene, count: int) -> Int64[Tensor, " M"]:
    """Indices, in order, of the `count` Gaussians that cover most (opacity times surface); of all, if that is fewer."""
    if count >= len(scene):
        return torch.arange(len(scene))
    return topk_mask(OpacityArea().score(scene)[GAUSSIANS], count).nonzero()[:, 0]


def _unit(scene: SplatScene) -> float:
    median = float(torch.exp(scene.scales.detach().amax(dim=1).median()))
    return max(median, 1e-12) / _TYPICAL_DEVIATION
