"""The rasteriser as a torch composition in float64: gsplat's torch reference, and every Gaussian at every pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.compress3d.splats.rasterize.reference import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN

DEGREES = {1: 0, 4: 1, 9: 2, 16: 3}


def splat(
    gsplat: Any,
    tensors: dict[str, Tensor],
    K: Tensor,
    width: int,
    height: int,
    antialiased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Differentiable image (H, W, D + 1, depth last), alpha (H, W), means2d (N, 2), and the pixels (H, W) that no
    threshold is close to.

    Args:
        gsplat: the module `gsplat.cuda._torch_impl`.
        tensors: float64 means, quats, scales (linear), opacities, colors ((N, D) or (N, K, 3) harmonics), viewmat,
            background (D,).
    """
    means, viewmat = tensors["means"], tensors["viewmat"]
    covariances, _ = gsplat._quat_scale_to_covar_preci(tensors["quats"], tensors["scales"], True, False)
    _, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        means, covariances, viewmat[None], K[None].double(), width, height, calc_compensations=antialiased
    )
    means2d, depths, conics = means2d[0], depths[0], conics[0]
    peaks = tensors["opacities"] * (compensations[0] if antialiased else 1.0)
    colors = tensors["colors"]
    if colors.ndim == 3:
        directions = means - torch.linalg.inv(viewmat)[:3, 3]
        colors = (gsplat._spherical_harmonics(DEGREES[colors.shape[1]], directions, colors) + 0.5).clamp_min(0)
    order = torch.argsort(depths)
    order = order[depths[order] >= 0.01]
    dx = torch.arange(width) + 0.5 - means2d[order, 0, None, None]
    dy = torch.arange(height)[:, None] + 0.5 - means2d[order, 1, None, None]
    a, b, c = conics[order].T[..., None, None]
    raw = peaks[order, None, None] * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
    clear = ~((raw / ALPHA_MIN - 1).abs() < 2e-4).any(dim=0) & ~((raw / ALPHA_MAX - 1).abs() < 2e-4).any(dim=0)
    alphas = torch.where(raw >= ALPHA_MIN, raw.clamp_max(ALPHA_MAX), 0.0)
    light, image, is_open = torch.ones_like(raw[0]), 0.0, torch.ones_like(raw[0], dtype=torch.bool)
    features = torch.cat([colors, depths[:, None]], dim=1)[order]
    for alpha, feature in zip(alphas, features, strict=True):
        after = light * (1 - alpha)
        clear &= ~(is_open & ((after / TRANSMITTANCE_MIN - 1).abs() < 1e-3))
        is_open = is_open & (after > TRANSMITTANCE_MIN)
        image = image + torch.where(is_open, alpha * light, 0.0)[..., None] * feature
        light = torch.where(is_open, after, light)
    behind = torch.cat([tensors["background"], means.new_zeros(1)])
    return image + light[..., None] * behind, 1 - light, means2d, clear
