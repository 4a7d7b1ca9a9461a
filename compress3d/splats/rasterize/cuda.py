"""The CUDA backend: gsplat."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rasterization_cuda(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colors: Tensor, viewmats: Tensor, Ks: Tensor,
    width: int, height: int, near_plane: float, far_plane: float, radius_clip: float, eps2d: float,
    sh_degree: int | None, backgrounds: Tensor | None, render_mode: str, rasterize_mode: str, absgrad: bool,
) -> tuple[Tensor, Tensor, dict[str, Any]]:  # fmt: skip
    """Arguments and returns as `rasterization`, unpacked so that the meta tensors are (C, N, ...)."""
    from gsplat import rasterization

    return rasterization(
        means, quats, scales, opacities, colors, viewmats, Ks, width, height,
        near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip, eps2d=eps2d, sh_degree=sh_degree,
        packed=False, backgrounds=backgrounds, render_mode=render_mode, rasterize_mode=rasterize_mode,
        absgrad=absgrad,
    )  # fmt: skip
