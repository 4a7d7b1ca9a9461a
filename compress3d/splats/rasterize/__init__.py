"""Rasterisation of Gaussian splats: `rasterization` with gsplat's face, `render` for a scene and cameras."""

from compress3d.splats.rasterize.rasterization import rasterization, render, render_each

__all__ = ["rasterization", "render", "render_each"]
