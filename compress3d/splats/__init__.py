"""Gaussian-splat scenes: read, compress, render and measure them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress3d.splats.compress import Compression, compress
    from compress3d.splats.evaluate import Evaluation, evaluate
    from compress3d.splats.formats import read_scene, write_scene
    from compress3d.splats.rasterize import rasterization, render
    from compress3d.splats.scene import SplatScene
    from compress3d.splats.simplify import simplify
    from compress3d.splats.views import orbit, sample_views, split_views

_HOMES = {
    "Compression": "compress",
    "Evaluation": "evaluate",
    "SplatScene": "scene",
    "compress": "compress",
    "evaluate": "evaluate",
    "orbit": "views",
    "rasterization": "rasterize",
    "read_scene": "formats",
    "render": "rasterize",
    "sample_views": "views",
    "simplify": "simplify",
    "split_views": "views",
    "write_scene": "formats",
}

__all__ = [
    "Compression",
    "Evaluation",
    "SplatScene",
    "compress",
    "evaluate",
    "orbit",
    "rasterization",
    "read_scene",
    "render",
    "sample_views",
    "simplify",
    "split_views",
    "write_scene",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line's help must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
