"""Gaussian-splat scenes: read, compress, render and measure them."""

from compress3d.splats.budget import Budget
from compress3d.splats.compress import Compression, Compressor, compress
from compress3d.splats.evaluate import Evaluation, evaluate
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.rasterize import rasterization, render
from compress3d.splats.scene import SplatScene
from compress3d.splats.simplify import simplify
from compress3d.splats.views import orbit, sample_views, split_views

__all__ = [
    "Budget",
    "Compression",
    "Compressor",
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
