"""The bench of meshes: its damage is what it says, and it goes from options to parts."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from compress3d.mesh.connectivity import Connectivity
from compress3d.mesh.shapes import icosphere


def test_damage_adds_what_it_says_and_leaves_the_mesh_in_front(bench: Callable[[str], ModuleType]) -> None:
    mesh = icosphere(3)
    whole, added = bench("meshes.damage").damaged(mesh, ((-2.0,) * 3, (2.0,) * 3), floaters=5, bumps=3)
    assert len(whole) == len(mesh) + added["floaters"] + added["membranes"]
    assert added["floaters"] == 5 * 320 and added["bumps"] > 0
    assert torch.equal(whole.faces[: len(mesh)], mesh.faces)
    assert float(whole.vertices[: len(mesh.vertices)].norm(dim=1).max()) > 1.1
    pieces = Connectivity.of(whole).components
    assert pieces.max() + 1 == 1 + 4 + 5
    away = whole.vertices[-5 * 162 :].reshape(5, 162, 3)
    assert float((away.mean(dim=1).norm(dim=1) - 1).abs().min()) > 0.03


def test_the_plain_equation_draws_what_ours_draws(bench: Callable[[str], ModuleType]) -> None:
    renderer = bench("meshes.renderer")
    mesh, camera = icosphere(0), renderer.camera_at(24)
    ours = renderer.soft_silhouettes(mesh, camera, renderer.SIGMA)[0]
    torch.testing.assert_close(ours, renderer.dense(mesh, camera).float(), atol=3e-3, rtol=0)


def test_quick_figures_stay_away_from_those_that_mean_something(bench: Callable[[str], ModuleType]) -> None:
    mesh = bench("mesh")
    quick, whole = mesh.parse(["--quick"]), mesh.parse(["--only", "renderer,chair"])
    assert quick.output.parent != whole.output.parent and quick.images != whole.images
    assert whole.only == ("renderer", "chair")
    settings = mesh.Settings(quick.capture, quick.images, True)
    names = [name for section in mesh.SECTIONS.values() for name in section(settings)]
    assert len(names) == len(set(names)) == 4
