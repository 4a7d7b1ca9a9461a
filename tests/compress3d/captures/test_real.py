"""The fox and the chair: counts and splits, and that the poses, axes and intrinsics belong to the photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.captures import Capture, read_capture


@pytest.fixture(scope="module")
def fox(shared_data: Path) -> Capture:
    if not (shared_data / "fox").is_dir():
        pytest.skip("no photographs of the fox")
    return read_capture(shared_data / "fox", long_side=240)


@pytest.fixture(scope="module")
def chair(shared_data: Path) -> Capture:
    folder = shared_data / "nerf_synthetic" / "chair"
    if not folder.is_dir():
        pytest.skip("no photographs of the chair")
    return read_capture(folder, long_side=200)


def test_the_fox_counts(fox: Capture) -> None:
    assert (len(fox), fox.skipped, len(fox.train), len(fox.test)) == (50, 17, 43, 7)
    assert fox.test.tolist() == list(range(0, 50, 8))
    assert (fox.cameras.width, fox.cameras.height) == (135, 240)
    assert fox.alphas is None
    for edge in (fox.images[:, 0], fox.images[:, -1], fox.images[:, :, 0], fox.images[:, :, -1]):
        assert bool((edge.amax(dim=(1, 2)) > 0).all()), "a black border"


def test_the_fox_is_refused_when_strict(shared_data: Path, fox: Capture) -> None:
    with pytest.raises(ValueError, match="17 of the 67 photographs listed are missing"):
        read_capture(shared_data / "fox", strict=True)


def test_the_cameras_of_the_fox_look_at_one_place(fox: Capture) -> None:
    positions = fox.cameras.positions.double()
    axes = fox.cameras.viewmats[:, 2, :3].double()
    across = torch.eye(3).double() - axes[:, :, None] * axes[:, None]
    meeting = torch.linalg.solve(across.sum(dim=0), (across @ positions[..., None]).sum(dim=0))[:, 0]
    towards = meeting - positions
    cosines = (towards * axes).sum(dim=1) / towards.norm(dim=1)
    assert bool((cosines > 0.9).all()), "a camera looks away"


def test_the_chair_counts(chair: Capture) -> None:
    assert (len(chair.train), len(chair.test), chair.skipped) == (100, 25, 175)
    assert all(chair.names[i].startswith("train/") for i in chair.train)
    assert all(chair.names[i].startswith("test/") for i in chair.test)
    assert chair.image(0)[0, 0].tolist() == [1.0, 1.0, 1.0], "the background must be white"


def alpha_at(capture: Capture, cameras: Cameras, index: Tensor, points: Float[Tensor, "P 3"]) -> Float[Tensor, "C P"]:
    """What alpha is where each view shows the points; 0 outside the image and behind the camera."""
    homogeneous = torch.cat([points, torch.ones(len(points), 1)], dim=1)
    seen = cameras.Ks @ (cameras.viewmats @ homogeneous.T)[:, :3]
    x, y = (seen[:, :2] / seen[:, 2:]).floor().long().unbind(dim=1)
    inside = (seen[:, 2] > 0) & (x >= 0) & (y >= 0) & (x < cameras.width) & (y < cameras.height)
    flat = (y * cameras.width + x).where(inside, 0)
    return capture.alphas[index].flatten(1).gather(1, flat) * inside / 255


def test_the_visual_hull_of_the_chair_is_seen_in_the_test_views(chair: Capture) -> None:
    points = torch.rand(60_000, 3, generator=torch.Generator().manual_seed(0)) * 2.6 - 1.3
    training = alpha_at(chair, chair.cameras[chair.train], chair.train, points)
    hull = points[(training > 0.5).all(dim=0)]
    assert 300 < len(hull) < 20_000
    tested = alpha_at(chair, chair.cameras[chair.test], chair.test, hull)
    assert (tested > 0.5).float().mean() > 0.995
    shown = torch.zeros(len(chair.test), 20, 20)
    covered = torch.nn.functional.avg_pool2d(chair.alphas[chair.test].float()[:, None] / 255, 10)[:, 0] > 0.9
    homogeneous = torch.cat([hull, torch.ones(len(hull), 1)], dim=1)
    seen = chair.cameras[chair.test].Ks @ (chair.cameras[chair.test].viewmats @ homogeneous.T)[:, :3]
    x, y = (seen[:, :2] / seen[:, 2:] / 10).long().clamp(0, 19).unbind(dim=1)
    shown.flatten(1).scatter_(1, y * 20 + x, 1.0)
    assert shown[covered].mean() > 0.9, "the hull does not fill the silhouettes"
