"""Pictures, against compositing by the book in float64 (`reference`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compress3d.splats.rasterize import rasterization
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded
from tests.compress3d.splats.rasterize.reference import ALPHA_MIN, Composite, composite

TOLERANCE = 2e-5
"""The kernel's exponential is good to 3e-6, and its screen coordinates are float32."""

CAMERAS = {
    "several tiles, none of them whole at the edges": pinhole(53, 37),
    "smaller than a tile": pinhole(9, 7, focal=9.0),
    "whole tiles": pinhole(48, 32, centre=(0.3, 0.8)),
    "one column": pinhole(1, 40),
}


def rasterize(cloud: Cloud, camera: Pinhole, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, D) and alpha (H, W, 1)."""
    images, alphas, _ = rasterization(
        *cloud, camera.viewmat[None], camera.K[None], camera.width, camera.height, **options
    )
    return images[0].numpy(), alphas[0].numpy()


def assert_shows(image: np.ndarray, expected: np.ndarray, book: Composite, scale: float = 1.0) -> None:
    """Equal to rounding; where a threshold is a toss-up, a Gaussian of the least alpha may come or go."""
    assert book.clear.mean() > 0.8, "hardly a pixel can be compared"
    error = np.abs(image - expected)
    assert error[book.clear].max() <= TOLERANCE * scale
    assert np.median(error) <= 0.1 * TOLERANCE * scale
    assert np.quantile(error, 0.999) <= 1.5 * ALPHA_MIN * scale


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
def test_pictures_are_composited_by_the_book(camera: Pinhole, mode: Any) -> None:
    cloud = Cloud.join(rounded(250, seed=3), awkward(camera, seed=4))
    book = composite(cloud, camera, mode == "antialiased")
    background = torch.tensor([[0.2, 0.9, 0.4]])
    image, alpha = rasterize(cloud, camera, backgrounds=background, rasterize_mode=mode)
    assert image.shape == (camera.height, camera.width, 3) and image.dtype == np.float32
    assert_shows(image, book.image(cloud.features.numpy(), background[0].numpy()), book)
    assert_shows(alpha, 1 - book.left_over[..., None], book)


@pytest.mark.parametrize("kind", range(12))
def test_each_awkward_gaussian_alone(kind: int) -> None:
    camera = CAMERAS["several tiles, none of them whole at the edges"]
    cloud = awkward(camera).select(torch.tensor([kind]))
    book = composite(cloud, camera)
    image, _ = rasterize(cloud, camera)
    np.testing.assert_allclose(image[book.clear], book.image(cloud.features.numpy())[book.clear], atol=TOLERANCE)


def test_the_awkward_do_what_they_are_there_for() -> None:
    camera = CAMERAS["several tiles, none of them whole at the edges"]
    cloud = awkward(camera)
    book = composite(cloud, camera)
    seen = book.by_gaussian((book.weights > 0).sum(axis=(1, 2)), len(cloud.means))
    behind, near, off, beyond, giant, subpixel, nothing, solid, hidden, transparent, visible, absent = seen
    assert behind == near == off == transparent == absent == 0
    assert giant > 0.9 * camera.width * camera.height
    assert 0 < subpixel < 20 and 0 < nothing < 20
    assert beyond > 50 and solid > 50 and visible > 50
    assert hidden > 0 and book.left_over.min() < 2e-4, "pixels stop early"


def test_dense_scenes_stop_early() -> None:
    """Hundreds of opaque layers in a pixel: the tile's early exit changes nothing."""
    camera = pinhole(40, 24, focal=90.0)
    cloud = rounded(700, seed=8, size=0.6)
    cloud = cloud._replace(opacities=cloud.opacities.clamp_min(0.5))
    book = composite(cloud, camera)
    assert book.left_over.max() < 0.01 and len(book.order) == 700
    image, _ = rasterize(cloud, camera)
    assert_shows(image, book.image(cloud.features.numpy()), book)


def test_needles() -> None:
    camera = CAMERAS["several tiles, none of them whole at the edges"]
    cloud = rounded(200, seed=9)
    cloud = cloud._replace(scales=torch.tensor([0.8, 3e-4, 3e-4]).expand(200, 3).contiguous())
    book = composite(cloud, camera)
    image, _ = rasterize(cloud, camera)
    # The quadratic form along a needle is a difference of large float32 numbers.
    assert_shows(image, book.image(cloud.features.numpy()), book, scale=3.0)


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_plain_features_of_any_width(channels: int) -> None:
    camera = pinhole(35, 21)
    cloud = Cloud.join(rounded(150, 1, channels), awkward(camera, 2, channels))
    book = composite(cloud, camera)
    background = torch.linspace(-1, 2, channels)[None]
    image, _ = rasterize(cloud, camera, backgrounds=background)
    assert_shows(image, book.image(cloud.features.numpy(), background[0].numpy()), book)
    image, _ = rasterize(cloud, camera)
    assert_shows(image, book.image(cloud.features.numpy()), book)


def test_features_need_not_be_colours() -> None:
    """Negative and large features are composited as they are: only spherical harmonics are clamped at black."""
    camera = pinhole(35, 21)
    cloud = rounded(150)
    cloud = cloud._replace(features=100 * (cloud.features - 0.5))
    book = composite(cloud, camera)
    image, _ = rasterize(cloud, camera)
    assert image.min() < -1
    assert_shows(image, book.image(cloud.features.numpy()), book, scale=100)


@pytest.mark.parametrize("mode", ["D", "ED", "RGB+D", "RGB+ED"])
def test_depth_modes(mode: Any) -> None:
    camera = pinhole(35, 21)
    cloud = rounded(150, seed=2)
    book = composite(cloud, camera)
    image, alpha = rasterize(cloud, camera, backgrounds=torch.full((1, 3), 0.7), render_mode=mode)
    depths = (cloud.means @ camera.viewmat[2, :3] + camera.viewmat[2, 3]).numpy()
    depth = book.image(depths[:, None])
    if mode.endswith("ED"):
        depth = depth / np.maximum(1 - book.left_over, 1e-10)[..., None]
        depth[alpha == 0] = 0
    assert image.shape[-1] == (4 if mode.startswith("RGB") else 1)
    covered = book.clear & (alpha[..., 0] > 0.05)
    np.testing.assert_allclose(image[..., -1:][covered], depth[covered], atol=6 * TOLERANCE, rtol=2e-5)
    np.testing.assert_array_equal(image[..., -1:][alpha == 0], 0.0)
    if mode.startswith("RGB"):
        assert_shows(image[..., :3], book.image(cloud.features.numpy(), 0.7), book)


def test_a_batch_of_cameras_is_one_by_one() -> None:
    cameras = [pinhole(37, 25, azimuth=azimuth, centre=(0.4, 0.6)) for azimuth in (0.0, 1.0, 2.5)]
    cloud = rounded(200)
    viewmats, Ks = torch.stack([c.viewmat for c in cameras]), torch.stack([c.K for c in cameras])
    colors = torch.rand(3, 200, 3, generator=torch.Generator().manual_seed(6))
    backgrounds = torch.rand(3, 3, generator=torch.Generator().manual_seed(7))
    images, alphas, _ = rasterization(*cloud[:4], colors, viewmats, Ks, 37, 25, backgrounds=backgrounds)
    shared, _, _ = rasterization(*cloud, viewmats, Ks, 37, 25)
    for index, camera in enumerate(cameras):
        own = cloud._replace(features=colors[index])
        image, alpha = rasterize(own, camera, backgrounds=backgrounds[index : index + 1])
        np.testing.assert_array_equal(images[index].numpy(), image)
        np.testing.assert_array_equal(alphas[index].numpy(), alpha)
        np.testing.assert_array_equal(shared[index].numpy(), rasterize(cloud, camera)[0])
        assert_shows(
            image, (book := composite(own, camera)).image(own.features.numpy(), backgrounds[index].numpy()), book
        )


def test_spherical_harmonics_per_camera_and_for_all() -> None:
    camera = pinhole(20, 20)
    cloud = rounded(80)
    coefficients = torch.randn(80, 9, 3, generator=torch.Generator().manual_seed(1))
    camera_batch = (camera.viewmat[None].repeat(2, 1, 1), camera.K[None].repeat(2, 1, 1), 20, 20)
    both = torch.stack([coefficients, coefficients.flip(0)])
    images, _, _ = rasterization(*cloud[:4], both, *camera_batch, sh_degree=2)
    for image, own in zip(images, both, strict=True):
        alone, _, _ = rasterization(*cloud[:4], own, *camera_batch, sh_degree=2)
        torch.testing.assert_close(alone[0], image, rtol=0, atol=0)


def test_near_and_far_planes_and_radius_clip() -> None:
    camera = pinhole(40, 30)
    cloud = rounded(200)
    image, _ = rasterize(cloud, camera, near_plane=3.8, far_plane=4.5)
    book = composite(cloud, camera, near=3.8, far=4.5)
    assert 20 < len(book.order) < 180
    assert_shows(image, book.image(cloud.features.numpy()), book)
    radii = rasterization(*cloud, camera.viewmat[None], camera.K[None], 40, 30)[2]["radii"][0]
    large = (radii > 6).any(dim=-1)
    assert 10 < int(large.sum()) < 190
    clipped, _ = rasterize(cloud, camera, radius_clip=6.0)
    np.testing.assert_array_equal(clipped, rasterize(cloud.select(large.nonzero()[:, 0]), camera)[0])


def test_numbers_that_are_none_are_not_drawn() -> None:
    """A NaN or an infinity in one Gaussian hides that Gaussian, and no other."""
    camera = pinhole(40, 30)
    cloud = rounded(60)
    expected, _ = rasterize(cloud, camera)
    for field in ("means", "quats", "scales", "opacities"):
        for value in (float("nan"), float("inf")):
            broken = rounded(3, seed=1)
            getattr(broken, field)[:] = value
            image, _ = rasterize(Cloud.join(broken, cloud), camera)
            if field == "opacities" and value == float("inf"):
                assert np.isfinite(image).all()
            elif field != "scales" or value != float("inf"):
                np.testing.assert_array_equal(image, expected, err_msg=f"{field} = {value}")
            else:
                assert np.isfinite(image).all()


def test_a_quaternion_of_zeros_is_not_drawn() -> None:
    camera = pinhole(40, 30)
    cloud = rounded(60)
    broken = rounded(1, seed=1)._replace(quats=torch.zeros(1, 4))
    np.testing.assert_array_equal(rasterize(Cloud.join(broken, cloud), camera)[0], rasterize(cloud, camera)[0])
