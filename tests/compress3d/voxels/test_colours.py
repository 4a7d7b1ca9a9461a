"""Voxels of photographs: a painted ball gets its colours, and the chair's green seat is found by asking for green."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.captures import Capture, read_capture
from compress3d.voxels.colours import coloured_voxels, shell, visible
from compress3d.voxels.pruning import QueryPruning
from compress3d.voxels.pyramid import VoxelPyramid
from compress3d.voxels.query import NearQuery
from tests.compress3d.mesh.views import cameras_at, ring_of_cameras

GREENS = torch.tensor([[0.2, 0.6, 0.2], [0.45, 0.7, 0.35]])


def painted_ball(cameras: Cameras) -> Capture:
    """A unit ball, red where x > 0 and blue elsewhere, ray-traced."""
    count, size = len(cameras), cameras.width
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    alphas = torch.zeros(count, size, size, dtype=torch.uint8)
    for index in range(count):
        viewmat, K = cameras.viewmats[index], cameras.Ks[index]
        rays = torch.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], torch.ones_like(x)], dim=-1)
        rays = torch.nn.functional.normalize(rays @ viewmat[:3, :3], dim=-1)
        eye = cameras.positions[index]
        along = rays @ eye
        depth = along.square() - eye.square().sum() + 1
        hit = depth > 0
        point = eye + rays * (-along - depth.clamp_min(0).sqrt())[..., None]
        colour = torch.where(point[..., :1] > 0, torch.tensor([250, 0, 0]), torch.tensor([0, 0, 250]))
        images[index], alphas[index] = (colour * hit[..., None]).byte(), hit.byte() * 255
    everything, names = torch.arange(count), tuple(f"{index}.png" for index in range(count))
    return Capture("ball", cameras, images, names, everything, everything[:0], alphas)


def test_a_painted_ball_gets_its_colours() -> None:
    capture = painted_ball(ring_of_cameras(9, size=64))
    voxels = coloured_voxels(capture, (-1.2,) * 3, (1.2,) * 3, 33)
    centres = -1.2 + voxels.coords * 2.4 / 32
    away = centres[:, 0].abs() > 0.2
    wanted = torch.where(centres[:, :1] > 0, torch.tensor([0.98, 0, 0]), torch.tensor([0, 0, 0.98]))
    error = (voxels.features - wanted)[away].abs().amax(dim=1)
    assert float((error < 0.2).float().mean()) > 0.97
    assert float((centres.norm(dim=1) - 1).abs().max()) < 0.35 and len(voxels) > 1500


def test_a_shell_is_what_touches_the_outside() -> None:
    grid = torch.zeros(5, 5, 5, dtype=torch.bool)
    grid[:, 1:4, 1:4] = True
    assert len(shell(grid)) == 45 - 3
    assert len(shell(torch.ones(1, 1, 1, dtype=torch.bool))) == 1


def test_what_is_behind_is_not_seen() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.0, 1, 0], [0.0, -1.0, 0], [0.0, -9.0, 0], [0.5, 0, 0]])
    rows, pixels = visible(points, cameras_at([(0.0, -4.0, 0.0)]), 0.1)
    assert rows.tolist() == [2, 4] and pixels.tolist()[0] == 24 * 48 + 24


@pytest.mark.slow
def test_asking_the_chair_for_green_gives_its_seat(shared_data: Path) -> None:
    capture = read_capture(shared_data / "nerf_synthetic" / "chair", long_side=100).subset(torch.arange(0, 100, 8))
    voxels = coloured_voxels(capture, (-1.0,) * 3, (1.05,) * 3, 48)
    target, query = VoxelPyramid.of(voxels, 3), NearQuery(GREENS, 0.15)
    small, record = QueryPruning((0.05, 0.2, 0.5), completion=0.5, reach=2).prune(target, query)
    wanted = query(voxels.features) >= 0.5
    found = voxels.find(small.levels[0].coords)
    assert int((found < 0).sum()) == 0
    assert int(wanted.sum()) > 50 and float(wanted[found].float().mean()) > 0.95
    assert len(found) > 0.9 * int(wanted.sum())
    assert sum(record.asked) < sum(record.voxels)
