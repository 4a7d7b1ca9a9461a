"""Which tiles an ellipse is listed in, and in what order: nothing lost, little too much, whatever the input's order."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress3d.splats.rasterize import rasterization
from compress3d.splats.rasterize.tiles import TILE, list_tiles
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded
from tests.compress3d.splats.rasterize.reference import ALPHA_MIN, Ellipses, project, raw_alphas

WIDTH, HEIGHT = 75, 58
TILES_X, TILES_Y = 5, 4


def random_ellipses(count: int, seed: int) -> Ellipses:
    """From dots to needles across the whole image, on it and around it, faint and solid."""
    random = np.random.default_rng(seed)
    angles, lengths = random.uniform(0, np.pi, count), np.exp(random.uniform(np.log(0.55), np.log(60), (count, 2)))
    axes = np.stack([np.cos(angles), -np.sin(angles), np.sin(angles), np.cos(angles)], axis=1).reshape(-1, 2, 2)
    factors = axes * lengths[:, None]
    return Ellipses(
        random.uniform([-30, -30], [WIDTH + 30, HEIGHT + 30], (count, 2)),
        factors @ factors.transpose(0, 2, 1),
        random.uniform(1, 9, count),
        np.clip(np.exp(random.uniform(np.log(0.0041), 0.1, count)), 0, 1),
    )


def listed(ellipses: Ellipses) -> np.ndarray:
    """(N, TILES_Y, TILES_X) bool: the tiles in which each ellipse is listed; each at most once, in order of depth."""
    count = len(ellipses.depths)
    arrays = [part.astype(np.float32) for part in (ellipses.means2d, ellipses.conics, ellipses.depths, ellipses.peaks)]
    tiles = list_tiles(*arrays, np.ones((count, 2), np.int32), WIDTH, HEIGHT)
    out = np.zeros((TILES_Y * TILES_X, count), bool)
    for tile in range(TILES_Y * TILES_X):
        ranks = tiles.ranks[tiles.starts[tile] : tiles.starts[tile + 1]]
        assert (np.diff(ranks) > 0).all(), "nearest first, once each"
        out[tile, tiles.order[ranks]] = True
    assert (np.diff(ellipses.depths[tiles.order]) >= -1e-6).all()
    return out.T.reshape(count, TILES_Y, TILES_X)


def by_tile(pixels: np.ndarray) -> np.ndarray:
    """(N, TILES_Y, TILES_X) bool: any of the tile's pixels; from (N, HEIGHT, WIDTH)."""
    padded = np.zeros((len(pixels), TILES_Y * TILE, TILES_X * TILE), bool)
    padded[:, :HEIGHT, :WIDTH] = pixels
    return padded.reshape(-1, TILES_Y, TILE, TILES_X, TILE).any(axis=(2, 4))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_tile_with_a_visible_pixel_is_lost(seed: int) -> None:
    ellipses = random_ellipses(60, seed)
    # Float32 means, conics and peaks are what is listed; a hair is left for the rounding of the form itself.
    needed = by_tile(raw_alphas(ellipses, WIDTH, HEIGHT) >= ALPHA_MIN * 1.0005)
    missing = needed & ~listed(ellipses)
    assert not missing.any(), f"ellipse, tile row and column: {np.argwhere(missing)[:5].tolist()}"


def test_few_tiles_are_listed_in_vain() -> None:
    ellipses = random_ellipses(600, seed=1)
    touched = by_tile(raw_alphas(ellipses, WIDTH, HEIGHT) >= ALPHA_MIN)
    tiles = listed(ellipses)
    assert touched.sum() > 1500
    # An ellipse may pass between pixel centres; that aside, the lists are exact.
    assert tiles.sum() <= 1.03 * touched.sum() + 60
    boxes = touched.any(axis=1)[:, None, :] & touched.any(axis=2)[:, :, None]
    assert tiles.sum() < 0.9 * boxes.sum(), "needles are not listed in all of their box"


def test_a_thin_diagonal_is_listed_along_its_line() -> None:
    camera = pinhole(160, 160, focal=150.0, azimuth=0.0)
    forty_five = torch.tensor([[np.cos(np.pi / 8), 0, 0, np.sin(np.pi / 8)]], dtype=torch.float32)
    cloud = Cloud(torch.zeros(1, 3), forty_five, torch.tensor([[0.6, 1e-3, 1e-3]]), torch.ones(1), torch.ones(1, 3))
    meta = rasterization(*cloud, camera.viewmat[None], camera.K[None], 160, 160)[2]
    assert meta["tile_width"] == meta["tile_height"] == 10
    assert 8 <= int(meta["tiles_per_gauss"][0, 0]) <= 28


@pytest.mark.parametrize("size", [(50, 40), (16, 16), (5, 3), (33, 17)])
def test_lists_in_the_meta_hold_every_visible_pair(size: tuple[int, int]) -> None:
    camera = pinhole(*size, focal=0.9 * size[0])
    cloud = Cloud.join(rounded(150), awkward(camera))
    meta = rasterization(*cloud, camera.viewmat[None], camera.K[None], *size)[2]
    count, tiles_x = len(cloud.means), meta["tile_width"]
    ends = torch.cat([meta["isect_offsets"].flatten(), torch.tensor([len(meta["flatten_ids"])])])
    ellipses = project(cloud, camera)
    alphas = raw_alphas(ellipses, *size)
    alphas[ellipses.depths < 0.01] = 0
    for tile in range(len(ends) - 1):
        y, x = TILE * (tile // tiles_x), TILE * (tile % tiles_x)
        needed = (alphas[:, y : y + TILE, x : x + TILE] >= ALPHA_MIN * 1.0005).any(axis=(1, 2)).nonzero()[0]
        present = meta["flatten_ids"][ends[tile] : ends[tile + 1]]
        assert set(needed.tolist()) <= set(present.tolist())
        assert bool((meta["depths"][0, present].diff() >= 0).all()), "nearest first"
    torch.testing.assert_close(
        meta["tiles_per_gauss"][0], torch.bincount(meta["flatten_ids"].long(), minlength=count), check_dtype=False
    )


def picture(cloud: Cloud, camera: Pinhole, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    images, alphas, _ = rasterization(
        *cloud, camera.viewmat[None], camera.K[None], camera.width, camera.height, **options
    )
    return images.numpy(), alphas.numpy()


def level_cloud(count: int) -> Cloud:
    """Many groups of Gaussians at exactly equal depth before a camera without rotation."""
    cloud = rounded(count, size=0.4)
    depths = 3 + torch.arange(count) % 4
    return cloud._replace(means=torch.cat([cloud.means[:, :2], depths[:, None].float()], dim=1))


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_permuting_gaussians_changes_nothing(mode: Any) -> None:
    ahead = pinhole(60, 45)._replace(viewmat=torch.eye(4))
    for cloud, camera in ((Cloud.join(rounded(300), awkward(ahead)), pinhole(60, 45)), (level_cloud(300), ahead)):
        expected = picture(cloud, camera, rasterize_mode=mode)
        for seed in range(3):
            order = torch.randperm(len(cloud.means), generator=torch.Generator().manual_seed(seed))
            got = picture(cloud.select(order), camera, rasterize_mode=mode)
            np.testing.assert_array_equal(got[0], expected[0])
            np.testing.assert_array_equal(got[1], expected[1])


def test_gaussians_that_differ_in_shape_alone_have_an_order_too() -> None:
    """Same centre, same depth, same opacity: one flat, one upright, one round."""
    camera = pinhole(60, 45)._replace(viewmat=torch.eye(4))
    shapes = torch.tensor([[0.5, 0.1, 0.1], [0.1, 0.5, 0.1], [0.3, 0.3, 0.3]])
    cloud = Cloud(
        torch.tensor([[0.0, 0.0, 3.0]]).repeat(3, 1), torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1), shapes,
        torch.full((3,), 0.8), torch.eye(3),
    )  # fmt: skip
    expected = picture(cloud, camera)
    for order in ([1, 0, 2], [2, 1, 0], [1, 2, 0]):
        np.testing.assert_array_equal(picture(cloud.select(torch.tensor(order)), camera)[0], expected[0])


def test_many_equal_depths_are_sorted_in_reasonable_time() -> None:
    """A wall that faces the camera is one tie; comparing each with each would take the time of the whole suite."""
    camera = pinhole(64, 64)._replace(viewmat=torch.eye(4))
    count = 200_000
    random = torch.Generator().manual_seed(0)
    means = torch.cat([4 * torch.rand(count, 2, generator=random) - 2, torch.full((count, 1), 3.0)], dim=1)
    cloud = Cloud(
        means, torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1), torch.full((count, 3), 1e-3),
        torch.full((count,), 0.1), torch.rand(count, 1, generator=random),
    )  # fmt: skip
    expected = picture(cloud, camera)
    order = torch.randperm(count, generator=random)
    np.testing.assert_array_equal(picture(cloud.select(order), camera)[0], expected[0])


def test_neither_runs_nor_threads_change_a_picture() -> None:
    camera = pinhole(90, 70)
    cloud = Cloud.join(rounded(500), awkward(camera))
    threads = nb.get_num_threads()
    expected = picture(cloud, camera)
    try:
        for count in {1, min(2, nb.config.NUMBA_NUM_THREADS), nb.config.NUMBA_NUM_THREADS}:
            nb.set_num_threads(count)
            for part, same in zip(picture(cloud, camera), expected, strict=True):
                np.testing.assert_array_equal(part, same)
    finally:
        nb.set_num_threads(threads)
