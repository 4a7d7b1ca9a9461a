"""Dropped bands: their error is that of the pixels, the share is met, what stays makes up, and 0 stays 0."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.bands import HeldBands, band_errors, drop_bands, reduced_degree
from compress3d.splats.pictures import Renders
from compress3d.splats.rasterize import render
from compress3d.splats.recover import Recover
from compress3d.splats.scene import SH_COEFFICIENTS, SplatScene
from compress3d.splats.views import sample_views
from tests.compress3d.splats.rasterize.clouds import rounded, scene_of
from tests.contracts import assert_deterministic

COUNT = 40
COSTS = {1: 3, 2: 5, 3: 7}


def cloud(degree: int) -> SplatScene:
    return scene_of(rounded(COUNT, size=0.5), degree)


def views(count: int = 12, seed: int = 0) -> Cameras:
    return sample_views(cloud(0), count, 40, 40, seed=seed)


def kept(scene: SplatScene) -> Tensor:
    """(N,) the degree that each Gaussian still has."""
    degrees = torch.zeros(len(scene), dtype=torch.long)
    for degree in range(1, scene.sh_degree + 1):
        band = scene.shN[:, SH_COEFFICIENTS[degree - 1] : SH_COEFFICIENTS[degree]]
        degrees[band.ne(0).any(dim=2).any(dim=1)] = degree
    return degrees


def squared_error(one: SplatScene, other: SplatScene, cameras: Cameras) -> float:
    return float((render(one, cameras).double() - render(other, cameras).double()).square().sum())


def with_one_of(scene: SplatScene, index: int, other: SplatScene) -> SplatScene:
    """`scene` with the harmonics of one Gaussian as they are in `other`."""
    sh0, shN = scene.sh0.clone(), scene.shN.clone()
    sh0[index], shN[index] = other.sh0[index], other.with_sh_degree(scene.sh_degree).shN[index]
    return scene.with_tensors(sh0=sh0, shN=shN)


@pytest.mark.parametrize("degree", [1, 3])
def test_errors_are_those_of_the_pixels(degree: int) -> None:
    scene, cameras = cloud(degree), views(6)
    errors = band_errors(scene, cameras)
    assert errors.shape == (COUNT, degree)
    bare = drop_bands(scene, cameras, 0.0)
    for index in (0, 7, 23):
        brute = squared_error(with_one_of(scene, index, bare), scene, cameras)
        assert float(errors[index, 0]) == pytest.approx(brute, rel=1e-3, abs=1e-7)


def test_what_stays_makes_up_for_what_is_dropped() -> None:
    scene, cameras = cloud(2), views()
    bare, cut = drop_bands(scene, cameras, 0.0), scene.with_sh_degree(0)
    assert bare.sh_degree == 0
    held_out = views(5, seed=7)
    assert squared_error(bare, scene, cameras) < 0.8 * squared_error(cut, scene, cameras)
    assert squared_error(bare, scene, held_out) < squared_error(cut, scene, held_out)


def test_what_the_views_cannot_tell_stays() -> None:
    scene = cloud(2)
    unseen = scene.with_tensors(opacities=torch.full_like(scene.opacities, -20.0))
    cameras = views(2)
    assert bool((band_errors(unseen, cameras) == 0).all())
    assert torch.equal(drop_bands(unseen, cameras, 0.0).sh0, scene.sh0)


@pytest.mark.parametrize(("degree", "share"), list(product([1, 2, 3], [0.0, 0.03, 0.4, 0.999])))
def test_the_share_is_met_exactly(degree: int, share: float) -> None:
    scene = cloud(degree)
    lean = drop_bands(scene, views(4), share)
    degrees = kept(lean)
    assert lean.sh_degree == int(degrees.max())
    left, total = sum(SH_COEFFICIENTS[int(d)] for d in degrees), COUNT * SH_COEFFICIENTS[degree]
    assert left <= share * total + 1e-6
    still_droppable = [COSTS[int(d) + 1] for d in degrees if d < degree]
    assert share * total - left < min(still_droppable)


def test_keeping_all_changes_nothing() -> None:
    scene = cloud(2)
    assert drop_bands(scene, views(2), 1.0) is scene
    plain = cloud(0)
    assert drop_bands(plain, views(2), 0.5) is plain


def test_who_loses_nothing_keeps_its_bits() -> None:
    scene = cloud(2)
    lean = drop_bands(scene, views(4), 0.5)
    whole = kept(lean) == 2
    assert 0 < int(whole.sum()) < COUNT
    assert torch.equal(lean.sh0[whole], scene.sh0[whole]) and torch.equal(lean.shN[whole], scene.shN[whole])
    assert all(torch.equal(lean.tensors()[name], scene.tensors()[name]) for name in ("means", "quats", "opacities"))


def test_what_is_seen_least_goes_first() -> None:
    scene, cameras = cloud(2), views()
    lean = drop_bands(scene, cameras, 0.5)
    errors = band_errors(scene, cameras)[:, 0]
    degrees = kept(lean)
    assert float(errors[degrees == 2].median()) > 3 * float(errors[degrees == 0].median())
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kept(drop_bands(scene.select(shuffled), cameras, 0.5)), degrees[shuffled])
    assert_deterministic(lambda: dict(drop_bands(scene, cameras, 0.5).tensors()))


def test_the_lowest_degree_within_a_tolerance() -> None:
    scene, cameras = cloud(3), views()
    faint = scene.with_tensors(shN=torch.cat([scene.shN[:, :3], 1e-3 * scene.shN[:, 3:]], dim=1))
    damaged = faint.with_tensors(opacities=faint.opacities - 0.3)
    images = render(faint, cameras)
    assert reduced_degree(damaged, cameras, images, 0.1).sh_degree == 1
    assert reduced_degree(damaged, cameras, images, math.inf).sh_degree == 0
    assert reduced_degree(faint, cameras, images, 0.1) is faint


def test_recovery_leaves_dropped_bands_at_zero() -> None:
    scene, cameras = cloud(2), views(4)
    lean = drop_bands(scene, cameras, 0.4)
    pictures = [Renders.of(scene, cameras)]
    recovered, _ = Recover(steps=6)(lean, pictures, rounding=HeldBands(lean))
    assert torch.equal(kept(recovered), kept(lean))
    assert not torch.equal(recovered.shN, lean.shN)
    freely, _ = Recover(steps=6)(lean, pictures)
    assert not torch.equal(kept(freely), kept(lean))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be 0 to 1"):
        drop_bands(cloud(1), views(2), share)


def test_views_and_tolerances_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one camera"):
        band_errors(cloud(1), views(2)[:0])
    with pytest.raises(ValueError, match="at least 0 dB"):
        reduced_degree(cloud(1), views(2), torch.zeros(2, 40, 40, 3), -1.0)
