"""The scene that comes with the package is small and whole, and looks like photographs that it did not learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from compress3d.captures import read_capture
from compress3d.splats.formats import read_scene
from compress3d.splats.formats.sanitize import drop_invalid
from compress3d.splats.photographs import quality_to_photographs
from compress3d.splats.samples import CHAIR, chair
from compress3d.splats.views import scene_shape


def test_the_chair_is_small_and_whole() -> None:
    assert CHAIR.stat().st_size <= 2_000_000
    scene = chair()
    assert 20_000 < len(scene) < 60_000
    _, invalid = drop_invalid(read_scene(CHAIR, keep_invalid=True))
    assert not sum(invalid.values())
    assert scene_shape(scene).layout == "outside_in"


def test_the_chair_looks_like_its_photographs(shared_data: Path) -> None:
    capture = read_capture(shared_data / "nerf_synthetic" / "chair")
    turn = torch.eye(4)
    # Photographs are z-up, the scene is y-down: (x, y, z) -> (x, -z, y).
    turn[1:3, 1:3] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    cameras = replace(capture.cameras, viewmats=capture.cameras.viewmats @ turn.inverse())
    quality = quality_to_photographs(chair(), replace(capture, cameras=cameras), capture.test.tolist()[::8])
    assert quality.mean_psnr > 32
