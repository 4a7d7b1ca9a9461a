"""Gaussians of a surface as texture maps: baking, looking up, sampling anew, and files."""

from compress3d.splats.baking.files import read_baked, write_baked
from compress3d.splats.baking.maps import BakedScene, bake
from compress3d.splats.baking.resample import resample
from compress3d.splats.baking.surfaces import MeshSurface, Sphere, Surface

__all__ = ["BakedScene", "MeshSurface", "Sphere", "Surface", "bake", "read_baked", "resample", "write_baked"]
