"""The criteria that the viewer offers, and scores that are kept once they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.importance import (
    GlobalSignificance,
    MiniSplatting,
    Opacity,
    OpacityArea,
    OpacityVolume,
    RayContribution,
    Spectral,
    Visibility,
)
from compress3d.splats.rasterize.contributions import RayContributions, ray_contributions
from compress3d.splats.scene import GAUSSIANS, SplatScene
from compress3d.splats.sensitivity import PupFisher, RemovalError, SpeedyScore
from secateur.console import Report, silent
from secateur.units import Criterion


@dataclass(frozen=True, slots=True)
class Choice:
    """A criterion in the menu.

    Args:
        label: its name there.
        criterion: what scores.
        looks: at nothing but the scene, along rays (shared by all that do), or at pixels through the cameras.
    """

    label: str
    criterion: Criterion
    looks: Literal["nothing", "rays", "pixels"]


CHOICES = (
    Choice("Visibility", Visibility(), "rays"),
    Choice("Largest ray contribution (RadSplat)", RayContribution("max"), "rays"),
    Choice("Sum of ray contributions", RayContribution("sum"), "rays"),
    Choice("Mini-Splatting", MiniSplatting(), "rays"),
    Choice("Global significance (LightGaussian)", GlobalSignificance(), "rays"),
    Choice("Removal error", RemovalError(), "pixels"),
    Choice("Fisher information (PUP 3D-GS)", PupFisher(), "pixels"),
    Choice("Speedy-Splat", SpeedyScore(), "pixels"),
    Choice("Spectral (SUNDAE)", Spectral(), "nothing"),
    Choice("Opacity", Opacity(), "nothing"),
    Choice("Opacity times area", OpacityArea(), "nothing"),
    Choice("Opacity times volume", OpacityVolume(), "nothing"),
)
"""The menu, the best first."""


class Scorer:
    """Scores a scene by what is chosen, each criterion once; what looks along rays shares one walk over the views.

    Args:
        scene: what to score.
        views: called for the cameras to look through when the first criterion needs them.
    """

    def __init__(self, scene: SplatScene, views: Callable[[], Cameras]) -> None:
        self.scene = scene
        self._views = views
        self._rays: RayContributions | None = None
        self._scores: dict[str, Tensor] = {}

    def scores(self, choice: Choice, report: Report = silent) -> Tensor:
        """(N,) float scores, the higher the more worth keeping."""
        if choice.label not in self._scores:
            report(0.0, f"scoring: {choice.label}")
            calibration = self._calibration(choice, report)
            self._scores[choice.label] = choice.criterion.score(self.scene, calibration)[GAUSSIANS]
        return self._scores[choice.label]

    def _calibration(self, choice: Choice, report: Report) -> RayContributions | Cameras | None:
        if choice.looks == "nothing":
            return None
        cameras = self._views()
        if choice.looks == "pixels":
            return cameras
        if self._rays is None:
            told = f"looking along rays: {len(cameras)} views"
            self._rays = ray_contributions(self.scene, cameras, lambda done: report(done / len(cameras), told))
        return self._rays
