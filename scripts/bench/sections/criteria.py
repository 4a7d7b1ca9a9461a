"""Every criterion at equal counts: what its best leave alone look like, what its scores are worth to merging, and both
after recovery."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jobs import scoring_views, thinned, warm_up
from parts import Job
from settings import Settings, load, quality
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import Judge
from compress3d.splats.mask_training import LearnedMask
from compress3d.splats.merge import Merge
from compress3d.splats.objective import Photometric
from compress3d.splats.pictures import Renders
from compress3d.splats.pruning import spectral_selection
from compress3d.splats.rasterize.contributions import RayContributions, ray_contributions
from compress3d.splats.recover import Recover
from compress3d.splats.scene import GAUSSIANS, SplatScene
from compress3d.splats.sensitivity import PupFisher, RemovalError, SpeedyScore
from secateur.allocation import Budget, allocate
from secateur.console import Report
from secateur.importance import Fisher, HessianDiagonal, HessianTrace, MaskHessian, MaskTaylor, Taylor
from secateur.masks import HardConcrete, StraightThrough
from secateur.units import Criterion
from sections.simplify import SELECTIONS

Recovery = Callable[[SplatScene], SplatScene]
"""Tunes a small scene to the original."""

RECOVERY_STEPS = 100
"""Of each recovery: enough to tell what selection left to win back; `compress` takes more."""

HOW = (
    "Scored through the views that compress samples, judged on the held-out ones. selection: the best by score stay as "
    "they are. merging: neighbours merge down to the same count, the scores being their masses (where none is "
    "negative). recovered: after so many steps of self-distillation at the scoring views. Criteria of the core that "
    "need a gradient look at renders with white noise of 0.01, without which there is none (see "
    "compress3d.splats.objective). seconds: to score, compiled code loaded; shared contributions and renders are apart."
)


@dataclass(frozen=True)
class Seen:
    """What criteria score through."""

    cameras: Cameras
    contributions: RayContributions
    renders: Renders

    @property
    def noisy(self) -> Photometric:
        """The squared error against renders with noise: it has a gradient."""
        return Photometric(self.renders, noise=0.01)

    @property
    def exact(self) -> Photometric:
        """The squared error against the renders: it has a curvature alone."""
        return Photometric(self.renders)


@dataclass(frozen=True)
class Candidate:
    """A criterion, and which of what was seen it takes for its calibration."""

    criterion: Criterion
    calibration: Callable[[Seen], Any]


def candidates(quick: bool) -> dict[str, Candidate]:
    """All criteria by name."""
    probes, steps = (1, 3) if quick else (4, 400)
    differences = HessianDiagonal(probes, method="central_differences", absolute=True)
    along_rays = {name: Candidate(one, lambda seen: seen.contributions) for name, one in SELECTIONS.items()}
    along_rays["spectral, sampled"] = Candidate(spectral_selection(), lambda seen: seen.contributions)
    pixels = {"removal error": RemovalError(), "Speedy-Splat": SpeedyScore(), "PUP 3D-GS": PupFisher()}
    pixels["PUP 3D-GS, log scale"] = PupFisher(scale="log")
    gradients = {
        "Taylor, squared": Taylor(reduce="square"),
        "mask Taylor, squared": MaskTaylor(reduce="square"),
        "Fisher": Fisher(),
    }
    curvatures = {
        "mask Hessian": MaskHessian(probes, method="central_differences"),
        "Hessian trace": HessianTrace(differences),
    }
    masks = {
        "learned mask, hard concrete": LearnedMask(HardConcrete, steps=steps),
        "learned mask, straight-through": LearnedMask(StraightThrough, steps=steps, weight=0.02),
    }
    return {
        **along_rays,
        **{name: Candidate(one, lambda seen: seen.cameras) for name, one in pixels.items()},
        **{name: Candidate(one, lambda seen: seen.noisy) for name, one in gradients.items()},
        **{name: Candidate(one, lambda seen: seen.exact) for name, one in curvatures.items()},
        **{name: Candidate(one, lambda seen: seen.renders) for name, one in masks.items()},
    }


@dataclass(frozen=True)
class Look:
    """A scene, what its criteria score through, and who judges what they leave."""

    scene: SplatScene
    judge: Judge
    seen: Seen


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a scene and criterion."""
    return {
        f"{name}: {method}": partial(_criterion, name, candidate, settings)
        for name in settings.scenes
        for method, candidate in candidates(settings.quick).items()
    }


@lru_cache(maxsize=1)
def _looked(name: str, settings: Settings) -> Look:
    """The criteria of a scene share what they look at."""
    scene, judge = load(name, settings)
    cameras = scoring_views(scene)
    cameras = cameras[:2] if settings.quick else cameras
    warm_up(scene)
    return Look(scene, judge, Seen(cameras, ray_contributions(scene, cameras), Renders.of(scene, cameras)))


def _criterion(name: str, candidate: Candidate, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    report(0.0, f"{name}: looking")
    look = _looked(name, settings)
    _warm_up(look.scene, candidate)
    steps = 3 if settings.quick else RECOVERY_STEPS
    report(0.0, f"{name}: scoring")
    start = time.perf_counter()
    scores = candidate.criterion.score(look.scene, candidate.calibration(look.seen))[GAUSSIANS]
    seconds = time.perf_counter() - start
    recover = partial(_recover, Recover(steps=steps), look.seen.renders)
    return {
        "how": HOW,
        "gaussians": len(look.scene),
        "scored_on_views": len(look.seen.cameras),
        "judged_on_views": len(look.judge.cameras),
        "recovery_steps": steps,
        "seconds": seconds,
        "rows": compare(look.scene, scores, look.seen, look.judge, settings.shares, recover, report),
    }


def compare(
    scene: SplatScene,
    scores: Tensor,
    seen: Seen,
    judge: Judge,
    shares: tuple[float, ...],
    recover: Recovery | None,
    report: Report,
) -> list[dict[str, Any]]:
    """Rows of one criterion: each share by selection and by merging, as it is and recovered (where `recover` is)."""
    rows = []
    for number, share in enumerate(shares):
        count = max(1, int(len(scene) * share))
        for how, reduced in _reduced(scene, scores, count, seen.cameras).items():
            report(number / len(shares), f"{how} at {share:.0%}")
            facts = {"share": share, "how": how}
            rows.append(facts | {"recovered": False} | quality(judge, reduced))
            if recover is not None:
                rows.append(facts | {"recovered": True} | quality(judge, recover(reduced)))
    return rows


def _reduced(scene: SplatScene, scores: Tensor, count: int, cameras: Cameras) -> Mapping[str, SplatScene]:
    keep = allocate({GAUSSIANS: scores}, scene.groups(), Budget(limit=count))
    reduced = {"selection": scene.cut(keep)}
    if bool(torch.isfinite(scores).all()) and bool((scores >= 0).all()) and bool((scores > 0).any()):
        # Masses are float32, and the squares of small derivatives are smaller than it holds.
        masses = (scores.double() / scores.double().mean()).float()
        reduced["merging"] = Merge()(scene, count, masses.numpy(), cameras)
    return reduced


def _recover(recovery: Recover, renders: Renders, small: SplatScene) -> SplatScene:
    return recovery(small, [renders])[0]


def _warm_up(scene: SplatScene, candidate: Candidate) -> None:
    """Load all compiled code that scoring runs; learned masks run what rendering runs."""
    if isinstance(candidate.criterion, LearnedMask):
        return
    few = thinned(scene)
    cameras = scoring_views(few)[:1]
    seen = Seen(cameras, ray_contributions(few, cameras), Renders.of(few, cameras))
    candidate.criterion.score(few, candidate.calibration(seen))
