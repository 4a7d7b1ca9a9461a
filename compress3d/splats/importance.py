"""What is each Gaussian worth? Criteria that need a splat scene, next to those of `secateur.importance`.

All have `score(scene, calibration)`. The calibration of a criterion that looks along rays is the scene's
`RayContributions`, or the `Cameras` to gather them through (give combined criteria the contributions, so that they are
gathered once); the others do without.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize.contributions import RayContributions, ray_contributions
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.graphs import GraphBuilder, NearestNeighbours
from secateur.importance.combine import RankMixture
from secateur.importance.spectral import GraphFilter, Laplacian, band_limited, response
from secateur.units import Scores

Calibration = RayContributions | Cameras | None
Reduction = Literal["sum", "max", "pixel_normalised", "count", "top1"]
Signal = Literal["position", "colour", "scale", "opacity"]


@dataclass(frozen=True)
class Opacity:
    """Peak opacity, 0 to 1: what every viewer's "remove faint splats" slider does."""

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores; the calibration is not used."""
        return {GAUSSIANS: scene.peak_opacities().detach()}


@dataclass(frozen=True)
class OpacityVolume:
    """Peak opacity times s_x s_y s_z, the usual order of progressive formats; flat Gaussians count for little."""

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores; the calibration is not used."""
        return {GAUSSIANS: scene.peak_opacities().detach() * volumes(scene)}


@dataclass(frozen=True)
class OpacityArea:
    """Peak opacity times the surface of the one-sigma ellipsoid.

    A convex body's shadow, averaged over all directions, is a quarter of its surface (Cauchy), so this is what a
    Gaussian covers of an image when nothing stands in front; the best guess without cameras.
    """

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores; the calibration is not used."""
        return {GAUSSIANS: scene.peak_opacities().detach() * surfaces(scene)}


@dataclass(frozen=True)
class RayContribution:
    """A statistic of the blending weight alpha * T over all rays of all views.

    Args:
        reduce: "max" is RadSplat's score (arXiv 2403.13806, section 4.2), which keeps small but decisive Gaussians;
            "sum" favours large near ones; "pixel_normalised" is the mean weight in each view, summed over views;
            "count" is the number of rays that hit, "top1" the number of those on which no other Gaussian weighs more.
    """

    reduce: Reduction = "max"

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores.

        Raises:
            ValueError: there is no calibration, or it is of another scene.
        """
        return {GAUSSIANS: getattr(_contributions(scene, calibration), self.reduce).to(torch.float32)}


@dataclass(frozen=True)
class Visibility:
    """The mean of two ranks: by largest blending weight, and by the number of rays on which the Gaussian is foremost.

    The largest weight alone (RadSplat) ranks what is seen clearly somewhere, and orders mild removal best; the rays led
    say how much of the images hangs on a Gaussian, and order strong removal best. Their ranks together are at least as
    good as either at every share kept (measured on views that were not scored through, 10 to 50 % kept).

    Args:
        foremost: weight of the second rank, 0 to 1.
    """

    foremost: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.foremost <= 1:
            raise ValueError(f"foremost must be between 0 and 1, got {self.foremost}")

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float64 scores in (0, 1).

        Raises:
            ValueError: there is no calibration, or it is of another scene.
        """
        both = RankMixture((RayContribution("max"), RayContribution("top1")), (1 - self.foremost, self.foremost))
        return both.score(scene, _contributions(scene, calibration))


@dataclass(frozen=True)
class MiniSplatting:
    """Mini-Splatting's importance (arXiv 2403.14166, section 4.2): blending weights, 0 for what is never foremost.

    A Gaussian that has the largest weight on no ray scores 0. The paper draws what to keep at random in proportion to
    this: `Sampled(MiniSplatting())`.

    Args:
        outdoor: True sums each view's mean weight, so that large near Gaussians do not outweigh distant ones; False
            sums the weights themselves, which the released code does indoors.
    """

    outdoor: bool = True

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores.

        Raises:
            ValueError: there is no calibration, or it is of another scene.
        """
        seen = _contributions(scene, calibration)
        weights = seen.pixel_normalised if self.outdoor else seen.sum
        return {GAUSSIANS: torch.where(seen.top1 > 0, weights, 0.0)}


@dataclass(frozen=True)
class GlobalSignificance:
    """LightGaussian's score as its paper has it (arXiv 2311.17245, section 3.2, equations 3 to 5).

    Sum over the rays that hit Gaussian j of o_j * T * gamma(V_j), with gamma(V) = clamp(V / V_90, 0, 1)^beta, V the
    volume s_x s_y s_z, and V_90 the volume that 90 % of the Gaussians do not exceed. A ray hits where alpha is at least
    1/255; the paper does not say how near is a hit. The released code leaves T and the clamp out.

    Args:
        beta: exponent of the volume.
    """

    beta: float = 0.1

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) float32 scores.

        Raises:
            ValueError: there is no calibration, or it is of another scene.
        """
        seen = _contributions(scene, calibration)
        volume = volumes(scene)
        rank = max(round(0.9 * len(volume)), 1)
        reference = volume.kthvalue(rank).values if len(volume) else volume.new_ones(())
        # Where 90 % of the volumes underflow to 0, every Gaussian of a positive volume is a large one.
        tiny = torch.finfo(volume.dtype).tiny
        gamma = (volume / reference.clamp_min(tiny)).clamp(0, 1) ** self.beta
        return {GAUSSIANS: scene.peak_opacities().detach() * seen.transmittance * gamma}


@dataclass(frozen=True)
class Spectral:
    """SUNDAE's importance (arXiv 2405.00676, section 3.2): what a graph filter finds at each Gaussian.

    The released code is `Spectral(signals=("position",), graph=WithinRadius(), filter=Laplacian("combinatorial"))`; the
    defaults mend its weaknesses: a neighbour graph that holds on any density, a Laplacian whose answers do not grow
    with crowding, and the signals that are seen. 500,000 Gaussians take 2.5 s on 2 cores.

    Args:
        keep: "high" scores by the filter's response (contours, texture, thin parts first); "low" by its negative
            (smooth parts first); "mixture" keeps, at any budget, a share of `gamma` from the high end and the rest from
            the low end (the band-limited graph filter of the paper).
        gamma: see `keep`.
        signals: what varies over the graph; each counts alike, whatever its unit.
        graph: which Gaussians are neighbours.
        filter: the graph filter.
    """

    keep: Literal["high", "low", "mixture"] = "mixture"
    gamma: float = 0.5
    signals: tuple[Signal, ...] = ("position", "colour", "scale", "opacity")
    graph: GraphBuilder = field(default_factory=NearestNeighbours)
    filter: GraphFilter = field(default_factory=Laplacian)

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be between 0 and 1, got {self.gamma}")
        if not self.signals:
            raise ValueError("signals must name at least one signal")

    def score(self, scene: SplatScene, calibration: Calibration = None) -> Scores:
        """(N,) scores; the calibration is not used.

        Raises:
            ValueError: a position or a signal is not finite.
        """
        signals = [_signal(scene, name) for name in self.signals]
        answers = response(self.graph.build(scene.means), signals, self.filter)
        if self.keep == "mixture":
            return {GAUSSIANS: band_limited(answers, self.gamma)}
        return {GAUSSIANS: answers if self.keep == "high" else -answers}


def volumes(scene: SplatScene) -> Float[Tensor, " N"]:
    """s_x s_y s_z, in cubic world units."""
    return torch.exp(scene.scales.detach().sum(dim=1))


def surfaces(scene: SplatScene) -> Float[Tensor, " N"]:
    """Surface of the one-sigma ellipsoid in square world units, within 1.1 % (Thomsen's formula, p = 1.6075)."""
    x, y, z = torch.exp(scene.scales.detach()).unbind(dim=1)
    p = 1.6075
    return 4 * torch.pi * (((x * y) ** p + (x * z) ** p + (y * z) ** p) / 3) ** (1 / p)


def _signal(scene: SplatScene, name: Signal) -> Float[Tensor, "N C"]:
    if name == "position":
        return scene.means
    if name == "colour":
        return scene.sh0[:, 0]
    if name == "scale":
        return scene.scales
    # Beyond these logits opacity looks the same, and files differ in how they store 0 and 1.
    return scene.opacities.clamp(-6, 6)[:, None]


def _contributions(scene: SplatScene, calibration: Calibration) -> RayContributions:
    if isinstance(calibration, Cameras):
        return ray_contributions(scene, calibration)
    if calibration is None:
        raise ValueError("this criterion looks along rays: pass the scene's RayContributions, or Cameras")
    if len(calibration.sum) != len(scene):
        raise ValueError(f"the contributions are of {len(calibration.sum)} Gaussians, the scene has {len(scene)}")
    return calibration
