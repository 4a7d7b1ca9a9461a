import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.viewer.paths import Flight, as_json, camera_at, joined, pose_of
from compress3d.splats.views import orbit
from tests.compress3d.splats.viewer.balls import scene


def ring(count: int = 8) -> Cameras:
    return orbit(scene(), count, 60, 40)


def test_a_pose_is_the_camera_it_came_from() -> None:
    cameras = ring()
    for index in range(len(cameras)):
        again = camera_at(pose_of(cameras, index), 60, 40)
        torch.testing.assert_close(again.viewmats[0], cameras.viewmats[index], rtol=0, atol=1e-5)
        torch.testing.assert_close(again.Ks[0], cameras.Ks[index], rtol=1e-5, atol=1e-4)


def test_recorded_views_are_a_file_that_render_reads(tmp_path: Path) -> None:
    cameras = ring(3)
    views = joined([cameras[0], camera_at(pose_of(cameras, 1), 120, 80), cameras[2]])
    (tmp_path / "cameras.json").write_bytes(as_json(views))
    again = Cameras.load(tmp_path / "cameras.json")
    assert (again.width, again.height, len(again)) == (60, 40, 3)
    torch.testing.assert_close(again.viewmats, cameras.viewmats, rtol=0, atol=1e-5)
    torch.testing.assert_close(again.Ks, cameras.Ks, rtol=1e-5, atol=1e-4)
    assert set(json.loads(as_json(views))) == {"width", "height", "Ks", "viewmats"}
    with pytest.raises(ValueError, match="no view is recorded"):
        joined([])


@pytest.mark.parametrize("closed", [False, True])
def test_a_flight_passes_its_views(closed: bool) -> None:
    cameras = ring()
    flight = Flight(cameras, closed)
    legs = len(cameras) if closed else len(cameras) - 1
    for index in range(len(cameras)):
        pose = camera_at(flight.at(index / legs), 60, 40)
        torch.testing.assert_close(pose.viewmats[0], cameras.viewmats[index], rtol=0, atol=1e-4)
    last = camera_at(flight.at(1.0), 60, 40).viewmats[0]
    torch.testing.assert_close(last, cameras.viewmats[0 if closed else -1], rtol=0, atol=1e-4)


def test_a_flight_around_keeps_its_distance() -> None:
    cameras = ring(12)
    centre = cameras.positions.mean(dim=0).numpy()
    radii = [np.linalg.norm(Flight(cameras, closed=True).at(time).position - centre) for time in np.linspace(0, 1, 100)]
    assert max(radii) < 1.02 * min(radii)


def test_one_view_is_a_flight_that_stays() -> None:
    for closed in (False, True):
        flight = Flight(ring(1), closed)
        np.testing.assert_allclose(flight.at(0.3).position, ring(1).positions[0].numpy(), atol=1e-5)
