"""A field as a function and as a `Prunable`: fast against plain, masks, cuts, criteria, and the rays that see it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from compress3d.nerf.field import Field, harmonics, new_field
from compress3d.nerf.levels import grid_levels
from compress3d.nerf.march import Stride
from compress3d.nerf.objective import PhotographError
from compress3d.nerf.rays import Rays, rays_of
from compress3d.nerf.render import orbit_of, render, render_rays, trace, visible_samples
from compress3d.nerf.units import GEOMETRY, LEVELS, ROWS
from secateur.allocation import Budget, allocate
from secateur.importance import Fisher, HessianDiagonal, Magnitude, MaskTaylor, Taylor
from secateur.units import Keep
from tests.compress3d.nerf.fields import BOX, some_field
from tests.compress3d.splats.photographed import around, photographed
from tests.contracts import (
    assert_deterministic,
    assert_exact_budget,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
    assert_scores_fit,
)

VIEW = around(3)


def some_rays(count: int = 300) -> Rays:
    return rays_of(VIEW, 0, BOX)[torch.arange(0, 576, 576 // count)[:count]]


def seen(field: Field) -> Tensor:
    pixels = render_rays(field, some_rays())
    return torch.cat([pixels.colors, pixels.opacities[:, None], pixels.depths[:, None]], dim=1)


def keep_some(field: Field, *groups: str) -> Keep:
    random = torch.Generator().manual_seed(7)
    return {
        group.name: torch.rand(group.size, generator=random) < (0.6 if group.name in groups else 2)
        for group in field.groups()
    }


def test_harmonics_are_orthonormal() -> None:
    random = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(200_000, 3, generator=random, dtype=torch.float64), dim=1)
    values = harmonics(directions)
    products = values.T @ values / len(values) * 4 * math.pi
    torch.testing.assert_close(products, torch.eye(16, dtype=torch.float64), rtol=0, atol=0.03)


@pytest.mark.parametrize("color_layers", [1, 2])
def test_the_fast_field_is_the_plain_one(color_layers: int) -> None:
    field, rays = some_field(color_layers=color_layers), some_rays(60)
    results = []
    for plain in (False, True):
        field.plain = plain
        pixels, _ = trace(field, rays)
        loss = (pixels.colors * 3).cos().sum() + pixels.opacities.square().sum() + pixels.depths.sum()
        results.append((*pixels, *torch.autograd.grad(loss, list(field.parameters()))))
    for fast, plain_one in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain_one, rtol=1e-3, atol=2e-4)


def test_visible_samples_are_those_before_the_end_of_a_ray() -> None:
    field = some_field()
    with torch.no_grad():
        field.density[-1].weight[0] *= 2
    samples = visible_samples(field, some_rays())
    densities = field.densities(field.features(samples.positions))
    depths = densities * samples.lengths
    rays = samples.rays
    total = torch.zeros(300).index_add(0, rays, depths)
    last = samples.starts[1:][samples.counts > 0] - 1
    before_last = total[rays[last]] - depths[last]
    assert bool((before_last < 9.22).all())
    assert bool((samples.distances.diff()[rays.diff() == 0] > 0).all())
    assert int((total > 9.21).sum()) > 0


def test_density_is_clamped_but_its_gradient_goes_on() -> None:
    field = some_field()
    with torch.no_grad():
        field.density[-1].weight[0] *= 1e3
    features = field.features(torch.rand(50, 3, generator=torch.Generator().manual_seed(1)))
    densities, _ = field.shade(features, torch.eye(3)[:1], torch.zeros(50, dtype=torch.int64))
    assert float(densities.max()) == pytest.approx(math.exp(15))
    gradient = torch.autograd.grad(densities.sum(), field.density[-1].weight)[0][0]
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0


def test_weights_that_do_not_fit_are_refused() -> None:
    field = some_field()
    weights = [layer.weight.detach() for layer in field.density], [layer.weight.detach() for layer in field.color]
    given = (BOX, Stride(), field.levels, field.table.detach())
    with pytest.raises(ValueError, match=r"density\.0 takes 8 numbers, but is given 6"):
        Field(BOX, Stride(), field.levels[:3], field.table.detach(), *weights, field.occupancy)
    with pytest.raises(ValueError, match="3 colours"):
        Field(*given, weights[0], weights[1][:1], field.occupancy)
    with pytest.raises(ValueError, match="features"):
        new_field(BOX, Stride(), grid_levels(2, 10, 4, 8), 9)


def test_identity() -> None:
    field = some_field()
    assert_full_keep_changes_nothing(field)
    assert_mask_of_ones_changes_nothing(field, seen)
    everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}
    assert_same(seen(field), seen(field.cut(everything)))


@pytest.mark.parametrize("groups", [(ROWS,), (LEVELS,), ("density.0",), ("color.0",), (GEOMETRY,)])
def test_a_mask_equals_its_cut(groups: tuple[str, ...]) -> None:
    field = some_field()
    assert_mask_equals_cut(field, keep_some(field, *groups), seen, rtol=1e-3, atol=1e-4)


def test_all_groups_can_be_cut_and_then_cut_again() -> None:
    field = some_field()
    keep = keep_some(field, ROWS, LEVELS, "density.0", "color.0", GEOMETRY)
    assert_mask_equals_cut(field, keep, seen, rtol=1e-3, atol=1e-4)
    smaller = field.cut(keep)
    again = keep_some(smaller, ROWS, LEVELS, "color.0")
    assert_mask_equals_cut(smaller, again, seen, rtol=1e-3, atol=1e-4)
    assert smaller.cut(again).bytes < smaller.bytes < field.bytes


def test_no_rows_left_is_a_field_of_zeros() -> None:
    field = some_field()
    keep = keep_some(field) | {ROWS: torch.zeros(len(field.table), dtype=torch.bool)}
    smaller = field.cut(keep)
    assert len(smaller.table) == 0
    assert not smaller.features(torch.rand(5, 3)).any()
    assert ROWS not in {group.name for group in smaller.groups()}
    whole = {group.name: torch.ones(group.size, dtype=torch.bool) for group in smaller.groups()}
    assert_same(seen(smaller), seen(smaller.cut(whole)))


def test_a_cut_that_leaves_too_little_is_refused() -> None:
    field = some_field()
    with pytest.raises(ValueError, match="needs 1"):
        field.cut(keep_some(field) | {LEVELS: torch.zeros(4, dtype=torch.bool)})
    with (
        pytest.raises(ValueError, match="mask is in force"),
        field.masked({group.name: torch.ones(group.size) for group in field.groups()}),
    ):
        field.cut(keep_some(field))


def test_bytes_are_what_is_stored() -> None:
    field = some_field()
    weights = sum(parameter.numel() for parameter in field.parameters())
    assert field.bytes == 4 * weights + 16**3 // 8
    costs = {group.name: group.cost["bytes"] for group in field.groups()}
    assert float(costs[ROWS][0]) == 8
    assert float(costs[LEVELS][0]) == 4 * (field.levels[0].rows * 2 + 2 * 16)


@pytest.mark.parametrize("criterion", [Magnitude(2), Taylor(), Fisher(), MaskTaylor(), HessianDiagonal(1)])
def test_core_criteria_score_a_field(criterion: object) -> None:
    field, capture = some_field(), photographed(4)
    plain = isinstance(criterion, HessianDiagonal)
    objective = PhotographError(capture, rays=40, batches=2, plain=plain)
    scores = assert_deterministic(partial(criterion.score, field, objective))  # type: ignore[attr-defined]
    assert_scores_fit(scores, field.groups())
    assert float(scores[ROWS].abs().max()) > 0


def test_rows_that_no_ray_meets_have_no_gradient_and_go_first() -> None:
    field, capture = some_field(), photographed(4)
    field.occupancy.bits.zero_()
    field.occupancy.bits[len(field.occupancy.bits) // 2] = 255
    scores = Fisher().score(field, PhotographError(capture, rays=400, batches=1))
    rows = next(group for group in field.groups() if group.name == ROWS)
    unseen = scores[ROWS] == 0
    assert 0 < int((~unseen).sum()) < len(unseen) // 2
    budget = Budget(limit=float((~unseen).sum()))
    keep = allocate({ROWS: scores[ROWS]}, [rows], budget)
    assert_exact_budget(keep, [rows], budget)
    assert bool(keep[ROWS][~unseen].all())


def test_a_picture_has_colours_opacities_and_depths() -> None:
    field = some_field()
    with torch.no_grad():
        field.density[-1].weight[0] *= 3
    picture = render(field, orbit_of(field.box, 2, 20, 16), 1, (0.0, 0.0, 0.0))
    assert picture.image.shape == (16, 20, 3)
    assert picture.opacities.shape == picture.depths.shape == (16, 20)
    assert bool(((picture.opacities >= 0) & (picture.opacities <= 1 + 1e-5)).all())
    middle = float(picture.depths[8, 10])
    assert 1.7 * 2.4 - 2.1 < middle < 1.7 * 2.4 + 2.1


def test_an_orbit_sees_the_box_from_around() -> None:
    cameras = orbit_of(BOX, 5, 30, 20, (0.0, 0.0, 1.0))
    assert len(cameras) == 5
    centre = cameras.viewmats[:, :3, 3]
    torch.testing.assert_close(centre[:, :2], torch.zeros(5, 2), rtol=0, atol=1e-5)
    assert float(cameras.positions.std(dim=0)[2]) < 1e-5
    with pytest.raises(ValueError, match="at least 1"):
        orbit_of(BOX, 0, 30, 20)
