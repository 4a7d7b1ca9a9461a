"""Sums of squared derivatives of pixels, against the dense Jacobian of a float64 composition and against removal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.sensitivity import Channels, fisher_information, squared_changes
from compress3d.splats.scene import SplatScene
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.composition import splat
from tests.contracts import assert_deterministic

VIEWS = [pinhole(15, 12, focal=17.0, azimuth=azimuth) for azimuth in (0.3, 2.2)]


def few(count: int = 7) -> Cloud:
    """Gaussians that overlap, the last of them at the clamp of alpha."""
    cloud = rounded(count, seed=2, size=0.6)
    return cloud._replace(opacities=torch.cat([cloud.opacities[:-1].clamp(0.2, 0.8), torch.tensor([0.9996])]))


def cameras_of(views: list[Pinhole]) -> Cameras:
    return Cameras(
        torch.stack([v.viewmat for v in views]), torch.stack([v.K for v in views]), views[0].width, views[0].height
    )


def dense_jacobians(cloud: Cloud, antialiased: bool) -> Tensor:
    """(pixels, channels, N, 6) derivatives of all pixels of all views by mean and linear scales, in float64."""
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    tensors = {name: tensor.double() for name, tensor in cloud._asdict().items()}
    tensors["colors"] = tensors.pop("features")
    rows = []
    for view in VIEWS:

        def image(means: Tensor, scales: Tensor, view: Pinhole = view) -> Tensor:
            moved = tensors | {"means": means, "scales": scales, "viewmat": view.viewmat.double()}
            moved["background"] = torch.ones(3, dtype=torch.float64)
            pixels, _, _, clear = splat(gsplat, moved, view.K, view.width, view.height, antialiased)
            assert bool(clear.all()), "a pixel is close to a threshold: choose another scene"
            return pixels[..., :3].reshape(-1, 3)

        by_mean, by_scale = torch.autograd.functional.jacobian(image, (tensors["means"], tensors["scales"]))
        rows.append(torch.cat([by_mean, by_scale], dim=-1))
    return torch.cat(rows)


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
def test_information_is_that_of_the_dense_jacobian(antialiased: bool) -> None:
    cloud = few()
    jacobian = dense_jacobians(cloud, antialiased)
    outputs: dict[Channels, Tensor] = {"separate": jacobian.flatten(0, 1), "summed": jacobian.sum(dim=1)}
    for channels, rows in outputs.items():
        expected = torch.einsum("rni,rnj->nij", rows, rows)
        ours = fisher_information(scene_of(cloud, antialiased=antialiased), cameras_of(VIEWS), channels)
        sizes = expected.diagonal(dim1=1, dim2=2).sqrt()
        assert bool((sizes > 0).all())
        error = (ours - expected) / (sizes[:, :, None] * sizes[:, None, :])
        assert float(error.abs().max()) < 1e-4, f"{channels}: {error.abs().amax(dim=(1, 2))}"


def test_falloff_is_that_of_a_dense_jacobian() -> None:
    """G is moved by hand at each pixel: o G is the alpha, and the pixel is linear in it."""
    cloud, cameras = few(), cameras_of(VIEWS)
    ours = squared_changes(scene_of(cloud), cameras).falloff
    expected = torch.zeros(len(ours), dtype=torch.float64)
    for view in VIEWS:
        alphas, gains = _alphas(cloud, view)
        alphas.requires_grad_(True)
        by_alpha = torch.autograd.grad(_blend(alphas, cloud, view).sum(), alphas)[0]
        expected += (by_alpha * gains).square().sum(dim=(1, 2))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)


def _alphas(cloud: Cloud, view: Pinhole) -> tuple[Tensor, Tensor]:
    """(N, H, W) alphas, and their derivatives by the falloff: the opacity where neither threshold cuts in."""
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")
    covariances, _ = gsplat._quat_scale_to_covar_preci(cloud.quats.double(), cloud.scales.double(), True, False)
    _, means2d, _, conics, _ = gsplat._fully_fused_projection(
        cloud.means.double(), covariances, view.viewmat[None].double(), view.K[None].double(), view.width, view.height
    )
    dx = torch.arange(view.width) + 0.5 - means2d[0, :, 0, None, None]
    dy = torch.arange(view.height)[:, None] + 0.5 - means2d[0, :, 1, None, None]
    a, b, c = conics[0].T[..., None, None]
    opacities = cloud.opacities.double()[:, None, None]
    raw = opacities * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)
    seen = raw >= 1 / 255
    return torch.where(seen, raw.clamp_max(0.999), 0.0), opacities * (seen & (raw <= 0.999))


def _blend(alphas: Tensor, cloud: Cloud, view: Pinhole) -> Tensor:
    """(H, W, 3) colours on white of (N, H, W) alphas."""
    depths = cloud.means.double() @ view.viewmat[2, :3].double() + view.viewmat[2, 3]
    image, light = torch.zeros((), dtype=alphas.dtype), torch.ones_like(alphas[0])
    for index in torch.argsort(depths).tolist():
        image = image + (alphas[index] * light)[..., None] * cloud.features[index].double()
        light = light * (1 - alphas[index])
    return image + light[..., None]


@pytest.mark.parametrize("antialiased", [False, True], ids=["classic", "antialiased"])
def test_removal_is_what_rendering_without_each_one_shows(antialiased: bool) -> None:
    cloud = Cloud.join(rounded(12, seed=4, size=0.5), awkward(VIEWS[0]).select(torch.arange(6)))
    cloud = cloud._replace(opacities=cloud.opacities.clamp(0.1, 0.9))
    scene, cameras = scene_of(cloud, degree=1, antialiased=antialiased), cameras_of(VIEWS)
    whole = render(scene, cameras).double()
    errors = []
    for index in range(len(scene)):
        others = torch.arange(len(scene)) != index
        errors.append((render(scene.select(others), cameras).double() - whole).square().sum())
    torch.testing.assert_close(squared_changes(scene, cameras).removal, torch.stack(errors), rtol=2e-3, atol=1e-6)


def test_what_no_view_sees_has_neither_information_nor_change() -> None:
    cloud = Cloud.join(few(), awkward(VIEWS[0]).select(torch.tensor([2, 11])))
    cloud = cloud._replace(opacities=cloud.opacities.clamp_min(1e-6))
    scene, front = scene_of(cloud), cameras_of(VIEWS[:1])
    assert not fisher_information(scene, front)[-2:].any()
    assert not any(part[-2:].any() for part in squared_changes(scene, front))


def test_views_add_up_and_come_out_alike_each_time() -> None:
    scene, cameras = scene_of(rounded(60, seed=1)), cameras_of(VIEWS)

    def gather(views: Cameras) -> dict[str, Tensor]:
        return {"information": fisher_information(scene, views), **squared_changes(scene, views)._asdict()}

    both = assert_deterministic(lambda: gather(cameras))
    first, second = gather(cameras[0]), gather(cameras[1])
    for name, value in both.items():
        torch.testing.assert_close(value, first[name] + second[name], rtol=1e-9, atol=0)


def test_progress_counts_the_views_of_an_empty_scene_too() -> None:
    done: list[int] = []
    empty: SplatScene = scene_of(rounded(0))
    assert fisher_information(empty, cameras_of(VIEWS), progress=done.append).shape == (0, 6, 6)
    assert squared_changes(empty, cameras_of(VIEWS), done.append).removal.shape == (0,)
    assert done == [1, 2, 1, 2]
