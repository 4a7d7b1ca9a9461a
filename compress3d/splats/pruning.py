"""Pruning inside training: when, by which criterion, and how much."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.importance import RayContribution, Spectral, Visibility
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.allocation import Budget, allocate
from secateur.importance import Sampled
from secateur.units import Criterion


@dataclass(frozen=True, slots=True)
class PruneAt:
    """Remove Gaussians at some moments of a run; after the last, no more are grown than it left.

    Args:
        at: the moments, as shares of the run, 0 to 1.
        criterion: scores the scene, through the training cameras where it looks along rays.
        budget: what stays, each time; a share is of what is there then.
        threshold: the lowest score that stays; give this or a budget.

    Raises:
        ValueError: a moment is not between 0 and 1, or not exactly one of `budget` and `threshold` is given.
    """

    at: tuple[float, ...]
    criterion: Criterion = field(default_factory=Visibility)
    budget: Budget | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not self.at or not all(0 < moment < 1 for moment in self.at):
            raise ValueError(f"a scene is pruned at moments between 0 and 1, shares of the run, got {self.at}")
        if (self.budget is None) == (self.threshold is None):
            raise ValueError("a pruning needs either a budget or a threshold")

    def moments(self, steps: int) -> tuple[int, ...]:
        """The steps, numbered from 1, after which to prune in a run of so many, in order."""
        return tuple(sorted({max(1, round(moment * steps)) for moment in self.at}))

    def keep(self, scene: SplatScene, cameras: Cameras) -> Bool[Tensor, " N"]:
        """Which Gaussians stay; at least one does.

        Args:
            scene: as it is now, on any device.
            cameras: on the CPU.
        """
        with torch.no_grad():
            scores = self.criterion.score(scene.to("cpu"), cameras)
            if self.budget is not None:
                kept = allocate(scores, scene.groups(), self.budget)[GAUSSIANS]
            else:
                assert self.threshold is not None
                kept = scores[GAUSSIANS] >= self.threshold
                kept[scores[GAUSSIANS].argmax()] = True
        return kept.to(scene.means.device)


def radsplat(threshold: float = 0.01) -> PruneAt:
    """RadSplat's two prunes (Niemeyer et al. 2024, arXiv 2403.13806, section 4.2), at 16/30 and 24/30 of the run.

    Args:
        threshold: the least largest blending weight that a Gaussian must have on a ray; 0.25 for light scenes.
    """
    return PruneAt((16 / 30, 24 / 30), RayContribution("max"), threshold=threshold)


def spectral_selection(gamma: float = 0.8, strict: bool = False) -> Criterion:
    """What SUNDAE keeps by the response to its high-pass filter (Yang et al. 2024, arXiv 2405.00676, section 3.2).

    Args:
        gamma: how much the high end of the spectrum counts, 0 to 1.
        strict: that share of what is kept is the strongest, the rest the weakest; the released code's default. Else
            its other mode: a sample without replacement, by probabilities of which that share is in proportion to the
            responses and the rest uniform. The weakest crowd where a scene is smooth and leave holes elsewhere: on a
            scene of our own, strict selection at 0.5 came out below a random one, sampling above it.
    """
    return Spectral("mixture", gamma) if strict else Sampled(Spectral("high"), uniform=1 - gamma)


def sundae(
    keep: float = 0.5,
    gamma: float = 0.8,
    prunes: int = 8,
    start: float = 0.5,
    stop: float = 0.85,
    *,
    strict: bool = False,
) -> PruneAt:
    """SUNDAE's continuous pruning (Yang et al. 2024, arXiv 2405.00676, section 3.2): a little of it, again and again.

    Args:
        keep: what all prunes together leave, 0 to 1; each leaves the same share.
        gamma, strict: as in `spectral_selection`.
        prunes: how many.
        start: share of the run at the first.
        stop: share of the run at the last.

    Raises:
        ValueError: a share is out of range, or there are no prunes.
    """
    if prunes < 1 or not 0 < start <= stop < 1:
        raise ValueError(f"prunes must be at least 1 and 0 < start <= stop < 1, got {prunes}, {start} and {stop}")
    moments = torch.linspace(start, stop, prunes, dtype=torch.float64).tolist()
    return PruneAt(tuple(moments), spectral_selection(gamma, strict), Budget(share=keep ** (1 / prunes)))


def to_budget(keep: float | int, at: tuple[float, ...] = (16 / 30, 22 / 30)) -> PruneAt:
    """What is worth most through the training cameras stays: `Visibility`, scored anew at each prune.

    Args:
        keep: a count of Gaussians (int), or the share of them (float) that all prunes together leave.
        at: the moments, as shares of the run.
    """
    budget = Budget(limit=keep) if isinstance(keep, int) else Budget(share=keep ** (1 / len(at)))
    return PruneAt(at, Visibility(), budget)
