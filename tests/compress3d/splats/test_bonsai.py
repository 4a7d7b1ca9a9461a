"""The bonsai: a scene one can count on, in the right frame, that looks alike at any size, and is worth pruning."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress3d.splats.bonsai import SHARES, bonsai, shared_out
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.contributions import ray_contributions
from compress3d.splats.scene import SplatScene
from compress3d.splats.views import orbit
from secateur.metrics.image import psnr

COUNT = 12_000


@cache
def small() -> SplatScene:
    return bonsai(COUNT)


def colours(scene: SplatScene) -> Tensor:
    return 0.5 + 0.28209479 * scene.sh0[:, 0]


def test_has_exactly_the_count_asked_for_and_only_finite_numbers() -> None:
    for count in (1000, 1001, 4999):
        scene = bonsai(count)
        assert len(scene) == count
        assert scene.sh_degree == 3
        assert all(torch.isfinite(tensor).all() for tensor in scene.tensors().values())
    assert torch.allclose(scene.quats.norm(dim=1), torch.ones(len(scene)), atol=1e-5)


def test_too_few_gaussians_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 1000.*999"):
        bonsai(999)


def test_default_is_a_scene_of_serious_size() -> None:
    assert (bonsai.__defaults__ or (0,))[0] >= 150_000


def test_a_seed_gives_one_tree_and_leaves_global_random_state_alone() -> None:
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again, other = bonsai(2000, seed=3), bonsai(2000, seed=3), bonsai(2000, seed=4)
    for name, tensor in first.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])
    assert not torch.allclose(first.means, other.means)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(torch_before, torch.get_rng_state())


def test_stands_upright_in_the_y_down_frame_about_one_unit_high() -> None:
    scene = small()
    red, green, blue = colours(scene).T
    leaves, glaze = (green > 1.3 * red) & (green > 1.3 * blue), (blue > 1.3 * red) & (blue >= green)
    assert leaves.sum() > 0.3 * COUNT
    assert glaze.sum() > 0.03 * COUNT
    assert scene.means[leaves, 1].median() < scene.means[glaze, 1].median() - 0.2
    low, high = torch.quantile(scene.means, 0.01, dim=0), torch.quantile(scene.means, 0.99, dim=0)
    assert 0.7 < (high - low)[1] < 1.2
    assert ((low + high) / 2).abs().max() < 0.15


def test_most_gaussians_are_flat_and_a_few_are_thick() -> None:
    sizes = torch.exp(small().scales).sort(dim=1).values
    flat = sizes[:, 0] < 0.35 * sizes[:, 1]
    assert 0.6 < flat.float().mean() < 0.98


def test_more_gaussians_are_smaller_ones() -> None:
    def typical(scene: SplatScene) -> float:
        return float(torch.exp(scene.scales).max(dim=1).values.median())

    assert typical(bonsai(4 * COUNT)) / typical(small()) == pytest.approx(0.5, abs=0.12)


def test_looks_alike_at_any_size() -> None:
    scene, larger, another = small(), bonsai(4 * COUNT), bonsai(COUNT, seed=1)
    views = orbit(scene, 3, 96, 96)
    picture = render(larger, views)
    likeness = psnr(render(scene, views), picture).mean()
    assert likeness > 18
    assert likeness > psnr(render(another, views), picture).mean() + 4
    assert picture[:, :6, :6].min() > 0.97, "a white background stays white beside the tree"


def test_colour_depends_on_the_view_where_things_gleam() -> None:
    scene = bonsai(COUNT, seed=1)
    blue = (colours(scene)[:, 2] > 1.3 * colours(scene)[:, 0]) & (colours(scene)[:, 2] >= colours(scene)[:, 1])
    energy = scene.shN.square().sum(dim=(1, 2)).sqrt()
    assert energy[blue].median() > 2.5 * energy[~blue].median()
    assert energy.max() < 3
    views = orbit(scene, 2, 64, 64)
    assert (render(scene, views) - render(scene, views, sh_degree=0)).abs().max() > 0.02


def test_is_redundant_as_trained_scenes_are() -> None:
    scene = bonsai(4 * COUNT)
    opacities = scene.peak_opacities()
    assert (opacities < 0.1).float().mean() > 0.02
    assert torch.quantile(opacities, 0.9) - torch.quantile(opacities, 0.1) > 0.3
    views = orbit(scene, 8, 128, 128)
    seen = ray_contributions(scene, views).sum
    best = seen.topk(len(scene) * 6 // 10).indices
    assert float(psnr(render(scene.select(best.sort().values), views), render(scene, views)).mean()) > 30


@given(total=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_shares_add_up_and_are_off_by_less_than_one(total: int) -> None:
    sizes = shared_out(total, SHARES)
    assert sum(sizes.values()) == total
    for name, share in SHARES.items():
        assert abs(sizes[name] - total * share / sum(SHARES.values())) < 1
