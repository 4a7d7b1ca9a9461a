"""What a field hands over to splats: points on its surfaces, in their colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress3d.captures.points_ply import read_points
from compress3d.nerf.field import Field
from compress3d.nerf.points import save_points, surface_points
from compress3d.nerf.teacher import views_around
from compress3d.nerf.train import train
from compress3d.splats.initialise import initial_scene
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import blobs, photographed
from tests.contracts import assert_same


@pytest.fixture(scope="module")
def trained() -> Field:
    return train(photographed(16), steps=250, training=QUICK)[0]


def test_points_lie_on_what_was_photographed_and_start_a_scene(trained: Field, tmp_path: Path) -> None:
    points = surface_points(trained, views_around(trained.box, 12, 24), 500)
    assert 100 < len(points) <= 500
    distances = torch.cdist(points.xyz, blobs().means).min(dim=1).values
    assert float(distances.median()) < 0.5
    path = tmp_path / "points.ply"
    assert save_points(points, path) == path.stat().st_size
    read = read_points(path)
    assert read is not None
    assert_same((read.xyz, read.rgb), (points.xyz, points.rgb))
    scene = initial_scene(replace(photographed(8), points=read), 80)
    assert len(scene) == 80
    assert float(torch.cdist(scene.means, points.xyz).min(dim=1).values.max()) < 1e-3


def test_a_field_without_surfaces_has_no_points() -> None:
    field = some_field()
    field.occupancy.bits.zero_()
    with pytest.raises(ValueError, match="no surfaces"):
        surface_points(field, views_around(field.box, 2, 8), 10)
    with pytest.raises(ValueError, match="at least 1"):
        surface_points(field, views_around(field.box, 2, 8), 0)
