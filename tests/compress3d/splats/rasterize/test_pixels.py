"""Pixel lists and the lattices of pixels that they are made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compress3d.splats.rasterize.cpu import Lens, project_view
from compress3d.splats.rasterize.pixels import Lattice, lattice_mask, list_pixels, tile_pixels
from compress3d.splats.rasterize.rasterization import scene_gaussians, scene_views
from tests.compress3d.splats.rasterize.clouds import Cloud, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.reference import composite

CAMERA = pinhole(37, 21)


@pytest.mark.parametrize("weight_min", [1e-6, 0.01])
@pytest.mark.parametrize("lattice", [Lattice(1, 0), Lattice(2, 1), Lattice(3, 0), Lattice(7, 4)])
def test_lists_hold_the_books_weights(lattice: Lattice, weight_min: float) -> None:
    cloud = Cloud.join(rounded(150), awkward(CAMERA).select(torch.arange(11)))
    cloud = cloud._replace(opacities=cloud.opacities.clamp(1e-6, 1 - 1e-6))
    book = composite(cloud, CAMERA)
    weights = book.by_gaussian(book.weights, len(cloud.means))
    _, tiles = project_view(scene_gaussians(scene_of(cloud)), scene_views(CAMERA.cameras)[0], Lens())
    lists = list_pixels(tiles, CAMERA.width, CAMERA.height, lattice, weight_min)
    pixel_numbers = np.arange(CAMERA.width * CAMERA.height).reshape(CAMERA.height, CAMERA.width, 1) + 1
    numbers = tile_pixels(pixel_numbers)[:, 0] - 1
    assert len(lists.starts) == len(numbers) + 1 and lists.starts[-1] == len(lists.ranks) == len(lists.weights)
    wanted = lattice_mask(CAMERA.width, CAMERA.height, lattice)[..., 0] > 0
    for pixel, number in enumerate(numbers):
        entries = slice(lists.starts[pixel], lists.starts[pixel + 1])
        ranks, listed = lists.ranks[entries], lists.weights[entries]
        y, x = divmod(int(number), CAMERA.width)
        if number < 0 or not wanted[y, x]:
            assert len(ranks) == 0
            continue
        if not book.clear[y, x]:
            continue
        assert (np.diff(ranks) > 0).all(), "nearest first"
        assert (listed >= np.float32(weight_min)).all()
        dense = np.zeros(len(weights))
        dense[tiles.order[ranks]] = listed
        expected = np.where(weights[:, y, x] >= weight_min, weights[:, y, x], 0)
        near_floor = np.abs(weights[:, y, x] / weight_min - 1) < 1e-2
        np.testing.assert_allclose(dense[~near_floor], expected[~near_floor], atol=2e-5)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 8])
def test_lattices_share_out_the_pixels(stride: int) -> None:
    masks = np.stack([lattice_mask(45, 31, Lattice(stride, offset)) for offset in range(stride)])
    assert masks.shape == (stride, 31, 45, 1) and masks.dtype == np.float32
    np.testing.assert_array_equal(masks.sum(axis=0), 1)
    assert np.ptp(masks.sum(axis=(1, 2, 3))) <= 45, "none much fuller than another"


def test_tile_pixels_go_tile_by_tile_row_by_row() -> None:
    image = np.random.default_rng(0).random((21, 37, 2))
    pixels = tile_pixels(image)
    assert pixels.shape == (2 * 3 * 256, 2)
    for y, x in ((0, 0), (3, 17), (20, 36), (16, 31)):
        tile = (y // 16) * 3 + x // 16
        np.testing.assert_array_equal(pixels[tile * 256 + (y % 16) * 16 + x % 16], image[y, x])
    assert np.count_nonzero(pixels) == image.size, "what is outside the image is zero"
