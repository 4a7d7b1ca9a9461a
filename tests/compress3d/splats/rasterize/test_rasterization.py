"""The face of the rasteriser: shapes, defaults, empty scenes, errors, and whose memory it works on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compress3d.splats.rasterize import rasterization, render, render_each
from compress3d.splats.rasterize.cpu import as_array
from tests.compress3d.splats.rasterize.clouds import Cloud, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.reference import composite

CAMERA = pinhole(37, 21)
ONE = (CAMERA.viewmat[None], CAMERA.K[None], CAMERA.width, CAMERA.height)
WHITE = torch.ones(1, 3)


def test_shapes_and_types_of_the_meta() -> None:
    cloud = rounded(50)
    viewmats, Ks = CAMERA.viewmat.repeat(3, 1, 1), CAMERA.K.repeat(3, 1, 1)
    images, alphas, meta = rasterization(*cloud, viewmats, Ks, 37, 21)
    assert images.shape == (3, 21, 37, 3) and alphas.shape == (3, 21, 37, 1)
    assert images.dtype == alphas.dtype == torch.float32
    shapes = {
        "means2d": (3, 50, 2), "radii": (3, 50, 2), "depths": (3, 50), "conics": (3, 50, 3), "opacities": (3, 50),
        "tiles_per_gauss": (3, 50), "isect_offsets": (3, 2, 3),
    }  # fmt: skip
    assert {name: tuple(meta[name].shape) for name in shapes} == shapes
    assert meta["radii"].dtype == torch.int32
    assert (meta["tile_size"], meta["tile_width"], meta["tile_height"]) == (16, 3, 2)
    assert (meta["width"], meta["height"], meta["n_cameras"]) == (37, 21, 3)
    assert len(meta["flatten_ids"]) == int(meta["tiles_per_gauss"].sum())
    # Camera c's Gaussian i is c * N + i, and each camera's lists follow the last one's.
    assert bool((meta["flatten_ids"] // 50).diff().ge(0).all()) and int(meta["flatten_ids"].max()) >= 100
    torch.testing.assert_close(meta["isect_offsets"][1].flatten()[0], meta["tiles_per_gauss"][0].sum())


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
def test_empty_scenes_show_the_background(mode: Any) -> None:
    behind = awkward(CAMERA).select(torch.tensor([0, 1, 9, 11]))
    for cloud in (rounded(0), behind):
        images, alphas, meta = rasterization(*cloud, *ONE, backgrounds=0.5 * WHITE, render_mode=mode)
        colours = images[..., :3] if mode.startswith("RGB") else images[..., :0]
        assert bool((colours == 0.5).all()) and bool((images[..., colours.shape[-1] :] == 0).all())
        assert bool((alphas == 0).all())
        assert len(meta["flatten_ids"]) == 0 and meta["radii"].shape == (1, len(cloud.means), 2)
    assert bool((rasterization(*behind, *ONE)[0] == 0).all())


WRONG: dict[str, dict[str, Any]] = {
    "means": {"means": torch.zeros(5, 2)},
    "quats": {"quats": torch.zeros(5, 3)},
    "scales": {"scales": torch.zeros(4, 3)},
    "opacities": {"opacities": torch.zeros(5, 1)},
    "viewmats": {"viewmats": torch.zeros(1, 3, 4)},
    "Ks": {"Ks": torch.zeros(2, 3, 3)},
    "colors": {"colors": torch.zeros(4, 3)},
    "colors ": {"colors": torch.zeros(2, 5, 3)},
    "colors  ": {"colors": torch.zeros(5, 3), "sh_degree": 0},
    "sh_degree": {"colors": torch.zeros(5, 4, 3), "sh_degree": 2},
    "sh_degree ": {"colors": torch.zeros(5, 36, 3), "sh_degree": 4},
    "render_mode": {"render_mode": "depth"},
    "rasterize_mode": {"rasterize_mode": "mip"},
    "backgrounds": {"backgrounds": torch.zeros(1, 4)},
    "backgrounds ": {"backgrounds": torch.zeros(2, 3)},
    "backgrounds  ": {"backgrounds": torch.zeros(3)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height")
    arguments: dict[str, Any] = dict(zip(names, (*rounded(5), *ONE), strict=True))
    with pytest.raises(ValueError, match=name.strip()):
        rasterization(**arguments | WRONG[name])


def test_float32_memory_is_worked_on_without_a_copy() -> None:
    tensor = torch.rand(7, 3)
    assert np.shares_memory(as_array(tensor), tensor.numpy())
    assert np.shares_memory(as_array(tensor.requires_grad_()), tensor.detach().numpy())
    assert np.shares_memory(as_array(tensor[2:5]), tensor.detach().numpy())
    for other in (tensor.detach().t(), tensor.detach()[:, :2], tensor.detach().double()):
        array = as_array(other)
        assert array.dtype == np.float32 and array.flags.c_contiguous
        assert not np.shares_memory(array, tensor.detach().numpy())
        np.testing.assert_array_equal(array, other.float().numpy())


def test_inputs_are_left_as_they_were_and_may_be_strided() -> None:
    cloud = Cloud.join(rounded(80), awkward(CAMERA))
    before = [tensor.clone() for tensor in cloud]
    expected, _, _ = rasterization(*cloud, *ONE)
    for tensor, copy in zip(cloud, before, strict=True):
        assert torch.equal(tensor, copy)
    strided = Cloud(*(torch.stack([tensor, tensor], dim=1)[:, 0] for tensor in cloud))
    assert not strided.means.is_contiguous()
    assert torch.equal(rasterization(*strided, *ONE)[0], expected)


@pytest.mark.parametrize("antialiased", [False, True])
def test_render_is_rasterization_of_the_activated_scene(antialiased: bool) -> None:
    scene = scene_of(rounded(120), degree=2, antialiased=antialiased)
    cameras = pinhole(40, 30).cameras
    arguments = (scene.means, scene.quats, scene.scales.exp(), torch.sigmoid(scene.opacities))
    colors = torch.cat([scene.sh0, scene.shN], dim=1)
    mode: Any = "antialiased" if antialiased else "classic"
    for degree in (None, 0, 1, 3):
        images, alphas, _ = rasterization(
            *arguments, colors, cameras.viewmats, cameras.Ks, 40, 30, backgrounds=0.25 * WHITE,
            sh_degree=min(2 if degree is None else degree, 2), rasterize_mode=mode,
        )  # fmt: skip
        image, alpha = next(render_each(scene, cameras, (0.25, 0.25, 0.25), degree))
        assert torch.equal(image, images[0]) and torch.equal(alpha, alphas[0, ..., 0])
        assert torch.equal(render(scene, cameras, (0.25, 0.25, 0.25), degree), images)


def test_masked_gaussians_are_not_drawn() -> None:
    scene, cameras = scene_of(rounded(60)), pinhole(40, 30).cameras
    mask = (torch.arange(60) % 3 > 0).float()
    with scene.masked({"gaussians": mask}):
        masked = render(scene, cameras)
    torch.testing.assert_close(masked, render(scene.select(mask.bool()), cameras), rtol=0, atol=1e-6)


def test_pictures_move_with_the_world() -> None:
    """Moving and turning scene and camera together leaves the picture as it was."""
    cloud = rounded(100)
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    w, x, y, z = cloud.quats.T
    cos, sin = (angle / 2).cos(), (angle / 2).sin()
    turned = torch.stack([cos * w - sin * z, cos * x - sin * y, cos * y + sin * x, cos * z + sin * w], dim=1)
    shift = torch.tensor([0.5, -1.0, 2.0])
    viewmat = CAMERA.viewmat.clone()
    viewmat[:3, :3] = CAMERA.viewmat[:3, :3] @ turn.T
    viewmat[:3, 3] = CAMERA.viewmat[:3, 3] - viewmat[:3, :3] @ shift
    moved = cloud._replace(means=cloud.means @ turn.T + shift, quats=turned)
    first, _, _ = rasterization(*cloud, *ONE)
    second, _, _ = rasterization(*moved, viewmat[None], *ONE[1:])
    clear = torch.from_numpy(composite(cloud, CAMERA).clear)
    torch.testing.assert_close(second[0][clear], first[0][clear], rtol=0, atol=1e-4)
