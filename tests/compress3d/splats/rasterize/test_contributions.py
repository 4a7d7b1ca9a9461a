"""Ray contributions, against the weights of compositing by the book."""

from __future__ import annotations

import numpy as np
import torch

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import rasterization, render, render_each
from compress3d.splats.rasterize.contributions import observe, ray_contributions
from tests.compress3d.splats.rasterize.clouds import Cloud, Pinhole, awkward, pinhole, rounded, scene_of
from tests.compress3d.splats.rasterize.reference import Composite, composite
from tests.contracts import assert_deterministic

VIEWS = [pinhole(37, 21, azimuth=azimuth) for azimuth in (0.0, 1.5, 3.5)]


def cameras_of(views: list[Pinhole]) -> Cameras:
    return Cameras(
        torch.stack([v.viewmat for v in views]), torch.stack([v.K for v in views]), views[0].width, views[0].height
    )


def weights_of(cloud: Cloud, view: Pinhole) -> tuple[np.ndarray, Composite]:
    """(N, H, W) blending weights."""
    book = composite(cloud, view)
    return book.by_gaussian(book.weights, len(cloud.means)), book


def test_statistics_are_the_books() -> None:
    cloud = Cloud.join(rounded(200), awkward(VIEWS[0])).select(torch.arange(211))
    cloud = cloud._replace(opacities=cloud.opacities.clamp(1e-6, 1 - 1e-6))
    statistics = ray_contributions(scene_of(cloud), cameras_of(VIEWS))
    sums = maxima = counts = leads = normalised = light = np.zeros(len(cloud.means))
    unclear = 0
    for view in VIEWS:
        weights, book = weights_of(cloud, view)
        view_counts = (weights > 0).sum(axis=(1, 2))
        view_sums = weights.sum(axis=(1, 2))
        sums, counts = sums + view_sums, counts + view_counts
        maxima = np.maximum(maxima, weights.max(axis=(1, 2)))
        covered = weights.max(axis=0) > 0
        leads = leads + np.bincount(weights.argmax(axis=0)[covered], minlength=len(weights))
        normalised = normalised + np.where(view_counts > 0, view_sums / np.maximum(view_counts, 1), 0)
        light = light + book.by_gaussian(book.light, len(weights)).sum(axis=(1, 2))
        unclear += int((~book.clear).sum())
    assert unclear < 40
    # A toss-up at a threshold moves a count by one, and a sum by the least alpha.
    np.testing.assert_allclose(statistics.sum, sums, rtol=1e-4, atol=0.01)
    np.testing.assert_allclose(statistics.max, maxima, rtol=0, atol=2e-5 if unclear == 0 else 4e-3)
    assert np.abs(statistics.count.numpy() - counts).sum() <= unclear
    assert np.abs(statistics.top1.numpy() - leads).sum() <= 2 * unclear + 2
    np.testing.assert_allclose(statistics.pixel_normalised, normalised, rtol=2e-2, atol=1e-5)
    np.testing.assert_allclose(statistics.transmittance, light, rtol=1e-3, atol=1.01 * max(1, unclear // 20))
    assert statistics.count.dtype == statistics.top1.dtype == torch.int64


def test_weights_add_up_to_what_is_covered() -> None:
    scene, cameras = scene_of(Cloud.join(rounded(300), awkward(VIEWS[0]).select(torch.arange(8)))), cameras_of(VIEWS)
    scene = scene.with_tensors(opacities=scene.opacities.clamp(-8, 8))
    statistics = ray_contributions(scene, cameras)
    covered = sum(float(alpha.double().sum()) for _, alpha in render_each(scene, cameras))
    np.testing.assert_allclose(float(statistics.sum.double().sum()), covered, rtol=1e-5)
    pixels = sum(int((alpha > 0).sum()) for _, alpha in render_each(scene, cameras))
    assert int(statistics.top1.sum()) == pixels, "each covered ray has one leader"


def test_top1_and_count_of_a_picture_drawn_by_hand() -> None:
    """A broad solid Gaussian behind a narrow faint one: the broad leads all, the narrow colours few."""
    view = pinhole(33, 33, azimuth=0.0)._replace(viewmat=torch.eye(4))
    cloud = Cloud(
        torch.tensor([[0.0, 0, 3], [0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        torch.tensor([[9.0, 9, 1e-3], [0.03, 0.03, 0.03]]), torch.tensor([0.9, 0.3]), torch.rand(2, 3),
    )  # fmt: skip
    statistics = ray_contributions(scene_of(cloud), view.cameras)
    assert statistics.count[0] == statistics.top1[0] == 33 * 33
    assert 4 <= statistics.count[1] < 60 and statistics.top1[1] == 0
    np.testing.assert_allclose(statistics.transmittance[1], statistics.count[1].float(), rtol=1e-6)
    np.testing.assert_allclose(statistics.max[1], 0.3, atol=0.01)


def test_what_is_hidden_scores_nothing_and_can_go() -> None:
    view = pinhole(40, 40, azimuth=0.0)._replace(viewmat=torch.eye(4))
    walls = Cloud(
        torch.tensor([[0.0, 0, 2.0], [0, 0, 2.1], [0, 0, 2.2]]), torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        torch.full((3, 3), 30.0), torch.full((3,), 0.99), torch.rand(3, 3, generator=torch.Generator().manual_seed(0)),
    )  # fmt: skip
    hidden = rounded(50)
    hidden = hidden._replace(means=hidden.means + torch.tensor([0, 0, 6.0]))
    cloud = Cloud.join(walls, hidden)
    statistics = ray_contributions(scene_of(cloud), view.cameras)
    for values in (
        statistics.sum, statistics.max, statistics.count, statistics.top1, statistics.pixel_normalised,
        statistics.transmittance,
    ):  # fmt: skip
        assert bool((values[3:] == 0).all()) and bool((values[:1] > 0).all())
    whole, _, _ = rasterization(*cloud, view.viewmat[None], view.K[None], 40, 40)
    alone, _, _ = rasterization(*walls, view.viewmat[None], view.K[None], 40, 40)
    assert torch.equal(whole, alone)


def test_what_is_never_seen_scores_nothing() -> None:
    cloud = Cloud.join(rounded(60), awkward(VIEWS[0]).select(torch.tensor([0, 1, 2])))
    statistics = ray_contributions(scene_of(cloud), VIEWS[0].cameras)
    assert bool((statistics.sum[60:] == 0).all()) and bool((statistics.count[60:] == 0).all())


def test_observe_renders_what_render_does() -> None:
    for antialiased in (False, True):
        scene = scene_of(rounded(200), degree=3, antialiased=antialiased)
        done: list[int] = []
        images, weights = observe(scene, cameras_of(VIEWS), done.append)
        assert torch.equal(images, render(scene, cameras_of(VIEWS)))
        torch.testing.assert_close(weights, ray_contributions(scene, cameras_of(VIEWS)).sum, rtol=1e-5, atol=1e-6)
        assert done == [1, 2, 3]


def test_views_add_up_and_runs_agree() -> None:
    scene = scene_of(rounded(150))
    whole = assert_deterministic(lambda: ray_contributions(scene, cameras_of(VIEWS)).sum)
    parts = [ray_contributions(scene, view.cameras) for view in VIEWS]
    torch.testing.assert_close(whole, torch.stack([part.sum for part in parts]).sum(dim=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(
        ray_contributions(scene, cameras_of(VIEWS)).max, torch.stack([part.max for part in parts]).amax(dim=0)
    )


def test_an_empty_scene_contributes_nothing() -> None:
    images, weights = observe(scene_of(rounded(0)), cameras_of(VIEWS))
    assert bool((images == 1).all()) and weights.shape == (0,)
    assert ray_contributions(scene_of(rounded(0)), cameras_of(VIEWS)).sum.shape == (0,)
