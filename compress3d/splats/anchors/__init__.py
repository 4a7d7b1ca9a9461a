"""Splat systems that decode Gaussians for each camera: Scaffold-GS's anchors and GaussianForest's trees."""

from compress3d.splats.anchors.field import NeuralField, render_field
from compress3d.splats.anchors.files import load_field, save_field
from compress3d.splats.anchors.forest import ForestField
from compress3d.splats.anchors.forest_growing import ForestGrower
from compress3d.splats.anchors.growing import AnchorGrower
from compress3d.splats.anchors.points import start_points
from compress3d.splats.anchors.rows import GrowthSchedule
from compress3d.splats.anchors.scaffold import ScaffoldField
from compress3d.splats.anchors.scenes import decode_scene
from compress3d.splats.anchors.train import train_field

__all__ = [
    "AnchorGrower",
    "ForestField",
    "ForestGrower",
    "GrowthSchedule",
    "NeuralField",
    "ScaffoldField",
    "decode_scene",
    "load_field",
    "render_field",
    "save_field",
    "start_points",
    "train_field",
]
