"""What is each Gaussian worth? Criteria that ask how strongly the pixels react to it, from derivatives without a loss.

All have `score(scene, cameras)`, and take the views from the cameras. They need no pictures, and no autograd: one walk
over each view gathers all (see `rasterize.sensitivity`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.sensitivity import Channels, fisher_information, squared_changes
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.units import Scores


@dataclass(frozen=True)
class PupFisher:
    """PUP 3D-GS: log det of the sum over rays and channels of g g^T, g = d pixel / d (mean, scale) in R^6.

    Hanson et al. 2025 (arXiv 2406.10219). How sharply the views pin down where a Gaussian is and how
    large; scores are volumes in the logarithm, of any sign, and -inf for what no view sees. A view alone pins down five
    of the six directions: score through several.

    Args:
        channels: "separate" is the paper's; "summed" adds the colours of a pixel up first, as the CUDA code does that
            was released with it.
        scale: "linear" differentiates by the standard deviations, as that code does; "log" by their logarithms, which
            asks about relative size (the release's Python path).
        ridge: added to the correlation matrix of the six, so that what is seen from one side only keeps an order.
    """

    channels: Channels = "separate"
    scale: Literal["linear", "log"] = "linear"
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if self.channels not in get_args(Channels):
            raise ValueError(f"channels must be one of {get_args(Channels)}, got {self.channels!r}")
        if self.scale not in ("linear", "log"):
            raise ValueError(f"scale must be linear or log, got {self.scale!r}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, got {self.ridge}")

    def score(self, scene: SplatScene, calibration: Cameras | None = None) -> Scores:
        """(N,) float64 scores.

        Raises:
            ValueError: there are no cameras.
        """
        scores = _log_determinants(fisher_information(scene, _views(calibration), self.channels), self.ridge)
        if self.scale == "log":
            scores = scores + 2 * scene.scales.detach().double().sum(dim=1)
        return {GAUSSIANS: scores}


@dataclass(frozen=True)
class SpeedyScore:
    """Speedy-Splat: sum over pixels of (d L / d G)^2, with L the sum of all pixels' channels.

    Hanson et al. 2025 (arXiv 2412.00578): PUP's information about one number instead of six, the falloff G
    of the projected Gaussian at the pixel; faint rims count as much as the middle.
    """

    def score(self, scene: SplatScene, calibration: Cameras | None = None) -> Scores:
        """(N,) float64 scores, none negative.

        Raises:
            ValueError: there are no cameras.
        """
        return {GAUSSIANS: squared_changes(scene, _views(calibration)).falloff}


@dataclass(frozen=True)
class RemovalError:
    """The squared error that removing each Gaussian alone would add, exactly: sum over pixels and channels.

    What leaving one out would measure with N renders, from one walk, because a pixel is linear in every alpha. It is
    `MaskHessian` of the squared error against the scene's own renders without the noise of its probes (times the number
    of pixels and channels), and Optimal Brain Damage for a whole Gaussian. Exact for one, it is no more than a guide
    for many: of two Gaussians that hide each other's absence either may go, but not both.
    """

    def score(self, scene: SplatScene, calibration: Cameras | None = None) -> Scores:
        """(N,) float64 scores, none negative.

        Raises:
            ValueError: there are no cameras.
        """
        return {GAUSSIANS: squared_changes(scene, _views(calibration)).removal}


def _views(calibration: Cameras | None) -> Cameras:
    if calibration is None or not len(calibration):
        raise ValueError("this criterion looks at pixels: pass the Cameras of at least one view")
    return calibration


def _log_determinants(information: Float[Tensor, "N 6 6"], ridge: float) -> Float[Tensor, " N"]:
    """(N,) log determinants; -inf where a diagonal entry is 0."""
    variances = information.diagonal(dim1=1, dim2=2)
    seen = (variances > 0).all(dim=1)
    sizes = torch.where(seen[:, None], variances, 1.0).sqrt()
    correlations = information / (sizes[:, :, None] * sizes[:, None, :])
    # Rounding leaves eigenvalues of either sign below the ridge.
    eigenvalues = torch.linalg.eigvalsh(correlations).clamp_min(0) + ridge
    scores = eigenvalues.log().sum(dim=1) + 2 * sizes.log().sum(dim=1)
    return torch.where(seen, scores, -torch.inf)
