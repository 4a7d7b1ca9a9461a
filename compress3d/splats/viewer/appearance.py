"""How Gaussians look in the viewer: in their own colours or by a number each has, and what a budget would take away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from compress3d.splats.scene import GAUSSIANS, SplatScene
from compress3d.splats.viewer.arrays import base_colours
from secateur.allocation import Budget, allocate
from secateur.maths import average_ranks
from secateur.report.pictures import heat_map

Colouring = Literal["own colours", "rank of the score", "score", "error against the twin"]
Gone = Literal["red", "hidden"]

RED = (0.86, 0.08, 0.16)
"""What would go, where it is shown."""

_ORDERS_OF_MAGNITUDE = 100.0


@dataclass(frozen=True, slots=True)
class Appearance:
    """What the panel asks for.

    Args:
        colouring: what the colours tell.
        share: of the Gaussians to keep, 0 to 1; the others go.
        gone: how those that go are shown.
    """

    colouring: Colouring = "own colours"
    share: float = 1.0
    gone: Gone = "red"

    @property
    def needs_scores(self) -> bool:
        """Whether it takes scores to tell what it looks like."""
        return self.share < 1 or self.colouring in ("rank of the score", "score")

    @property
    def needs_errors(self) -> bool:
        """Whether it takes errors against a twin."""
        return self.colouring == "error against the twin"


class Scale(NamedTuple):
    """The values at both ends of the colours, and whether they are spread by their logarithm between."""

    low: float
    high: float
    logarithmic: bool


class Dress(NamedTuple):
    """Colours (N, 3) and opacities (N, 1) in [0, 1] as float32, how many stay, and what the colours stand for."""

    rgbs: Float[np.ndarray, "N 3"]
    opacities: Float[np.ndarray, "N 1"]
    kept: int
    scale: Scale | None


def dress(scene: SplatScene, appearance: Appearance, scores: Tensor | None, errors: Tensor | None) -> Dress:
    """What a scene looks like.

    Args:
        scene: N Gaussians.
        appearance: what is asked for.
        scores: (N,), the higher the more worth keeping; needed if `appearance.needs_scores`.
        errors: (N,), needed if `appearance.needs_errors`.

    Raises:
        ValueError: scores or errors are needed and not given.
    """
    rgbs, scale = _colours(scene, appearance.colouring, scores, errors)
    opacities = scene.peak_opacities().numpy(force=True)[:, None].astype(np.float32)
    if appearance.share >= 1:
        return Dress(rgbs, opacities, len(scene), scale)
    keep = keep_mask(scene, _given(scores, "scores"), appearance.share).numpy(force=True)
    if appearance.gone == "hidden":
        opacities = np.where(keep[:, None], opacities, np.float32(0))
    else:
        rgbs = np.where(keep[:, None], rgbs, np.asarray(RED, np.float32))
    return Dress(rgbs, opacities, int(keep.sum()), scale)


def keep_mask(scene: SplatScene, scores: Float[Tensor, " N"], share: float) -> Bool[Tensor, " N"]:
    """Which Gaussians stay at a share (0 to 1) of them: the best by score, at least one."""
    limit = max(1, int(share * len(scene) + 1e-9))
    return allocate({GAUSSIANS: scores}, scene.groups(), Budget(limit=limit))[GAUSSIANS]


def by_rank(scores: Float[Tensor, " N"]) -> Float[np.ndarray, "N 3"]:
    """Colours from black for the least over violet and orange to pale yellow for the most; equal values share one."""
    return _ramp(average_ranks(scores.double().cpu()).numpy())


def by_value(values: Float[Tensor, " N"]) -> tuple[Float[np.ndarray, "N 3"], Scale]:
    """Colours as `by_rank`, by the values themselves, and their scale.

    The ends are those that 1 % of the finite values lie below, and above. Positive values that span more than a factor
    of 100 between them are spread by their logarithm, where zeros take the colour of the low end. What is not finite
    takes the colour of the end that it is at.
    """
    numbers = np.asarray(values.double().numpy(force=True))
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(end) for end in np.quantile(finite, (0.01, 0.99))) if len(finite) else (0.0, 0.0)
    positive = finite[finite > 0]
    floor = low if low > 0 else float(np.quantile(positive, 0.01)) if len(positive) else np.inf
    logarithmic = bool(len(positive) and numbers.min() >= 0 and high > _ORDERS_OF_MAGNITUDE * floor)
    if logarithmic:
        low = floor
        with np.errstate(divide="ignore"):
            place = np.log(numbers / low) / np.log(high / low)
    else:
        place = (numbers - low) / (high - low) if high > low else np.zeros_like(numbers)
    place = np.nan_to_num(place, nan=0.0, posinf=1.0, neginf=0.0)
    return _ramp(np.clip(place, 0, 1)), Scale(low, high, logarithmic)


def _ramp(places: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
    return heat_map(places[None].astype(np.float32), 1)[0].astype(np.float32) / 255


def _colours(
    scene: SplatScene, colouring: Colouring, scores: Tensor | None, errors: Tensor | None
) -> tuple[Float[np.ndarray, "N 3"], Scale | None]:
    if colouring == "rank of the score":
        return by_rank(_given(scores, "scores")), None
    if colouring == "score":
        return by_value(_given(scores, "scores"))
    if colouring == "error against the twin":
        return by_value(_given(errors, "errors"))
    return base_colours(scene), None


def _given(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"this appearance needs {what}")
    return values
