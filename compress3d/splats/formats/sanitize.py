"""Taking Gaussians that cannot be rendered out of a scene."""

from __future__ import annotations

import logging
import math

import torch
from jaxtyping import Bool
from torch import Tensor

from compress3d.splats.formats.quantization import LARGEST_LOGIT
from compress3d.splats.scene import SplatScene

_LARGEST_LOG_SCALE = 0.5 * math.log(torch.finfo(torch.float32).max)
"""Above it the variance exp(2 * log-scale) overflows float32, and with it the covariance."""

logger = logging.getLogger("secateur")


def drop_invalid(scene: SplatScene) -> tuple[SplatScene, dict[str, int]]:
    """Drop the Gaussians that no renderer can draw, and make infinite opacities finite.

    An opacity logit of -inf or +inf stands for alpha 0 or 1 (formats that store alpha as a byte lead to them), so it is
    clamped to -+LARGEST_LOGIT instead. What is dropped is logged as one warning.

    Returns:
        the scene, the very same one if nothing was wrong with it, and reason -> number of Gaussians dropped for it;
        each dropped Gaussian counts once, under the first reason that holds.
    """
    invalid = invalid_by_reason(scene)
    dropped, counts = torch.zeros(len(scene), dtype=torch.bool, device=scene.means.device), {}
    for reason, mask in invalid.items():
        new = mask & ~dropped
        if new.any():
            counts[reason] = int(new.sum())
            dropped |= new
    if counts:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in counts.items())
        logger.warning("dropped %d of %d Gaussians: %s", sum(counts.values()), len(scene), reasons)
        scene = scene.select(~dropped)
    if torch.isinf(scene.opacities).any():
        scene = scene.with_tensors(opacities=scene.opacities.clamp(-LARGEST_LOGIT, LARGEST_LOGIT))
    return scene, counts


def invalid_by_reason(scene: SplatScene) -> dict[str, Bool[Tensor, " N"]]:
    """Reason -> (N,) mask of the Gaussians that cannot be rendered for it; the masks may overlap."""
    squared_norms = scene.quats.square().sum(dim=1)
    return {
        "a non-finite position": ~_finite(scene.means),
        "a non-finite rotation": ~_finite(scene.quats),
        "a rotation of zero or overflowing norm": ~(squared_norms > 0) | torch.isinf(squared_norms),
        "a non-finite scale": ~_finite(scene.scales),
        "a scale that overflows": (scene.scales > _LARGEST_LOG_SCALE).any(dim=1),
        "a NaN opacity": torch.isnan(scene.opacities),
        "a non-finite colour": ~(_finite(scene.sh0) & _finite(scene.shN)),
    }


def require_valid(scene: SplatScene) -> None:
    """Raise ValueError if a Gaussian cannot be rendered: a lossy writer would spread it to its neighbours."""
    counts = {reason: int(mask.sum()) for reason, mask in invalid_by_reason(scene).items() if mask.any()}
    if counts:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in counts.items())
        raise ValueError(f"the scene has Gaussians that cannot be rendered ({reasons}); drop_invalid takes them out")


def _finite(tensor: Tensor) -> Bool[Tensor, " N"]:
    """(N,) mask of the rows that are finite throughout, without a copy of the tensor as torch.isfinite would make."""
    rows = tensor.flatten(1)
    if not rows.shape[1]:
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    return torch.isfinite(rows.amin(dim=1)) & torch.isfinite(rows.amax(dim=1))
