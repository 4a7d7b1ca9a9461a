"""Hollow fields: open they are the plain field, closed they are empty, and rows belong to what can be seen."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid import encode_reference
from compress3d.nerf.hollow import HollowField, gate, hollowed, visible_cells
from compress3d.nerf.hollow_training import Hollowing, HollowTraining, train_hollow
from compress3d.nerf.levels import Level
from compress3d.nerf.march import march
from compress3d.nerf.objective import PhotographError
from compress3d.nerf.rays import rays_of
from compress3d.nerf.render import render
from compress3d.nerf.train import fit_field
from compress3d.nerf.units import ROWS, VOXELS
from secateur.allocation import Budget, allocate
from secateur.console import Report, silent
from secateur.importance import Fisher, Magnitude, MaskTaylor, Taylor
from secateur.units import Keep
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import around, photographed
from tests.contracts import (
    assert_deterministic,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_same,
    assert_scores_fit,
)


def hollow_field(logit: float = 20.0) -> HollowField:
    field = HollowField(some_field(), 8)
    with torch.no_grad():
        field.saliency.fill_(logit)
    return field


@pytest.mark.parametrize("plain", [False, True])
def test_saliencies_of_one_are_the_plain_field(plain: bool) -> None:
    field, hollow = some_field(), hollow_field()
    field.plain = hollow.plain = plain
    assert_same(list(render(hollow, around(1), 0)), list(render(field, around(1), 0)))


def test_saliencies_of_zero_are_empty_and_give_rows_no_gradient() -> None:
    hollow = hollow_field(-20.0)
    assert not render(hollow, around(1), 0).opacities.any()
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    directions, rays = torch.eye(3)[:1], torch.zeros(50, dtype=torch.int64)
    densities, colors = hollow.shade(hollow.features(points), directions, rays)
    assert not densities.any()
    (gradient,) = torch.autograd.grad(densities.sum() + colors.sum(), hollow.table)
    assert not gradient.any()


def test_rows_that_only_hollow_points_read_have_no_gradient() -> None:
    hollow = hollow_field()
    side = 8
    vertices = torch.arange(side**3)
    with torch.no_grad():
        hollow.saliency[vertices % side < 4] = -100.0
    points = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    empty = points[points[:, 0] < 0.3]
    visible = points[points[:, 0] > 0.7]
    for some, moves in ((empty, False), (visible, True)):
        (gradient,) = torch.autograd.grad(hollow.features(some).square().sum(), hollow.table)
        assert bool(gradient.any()) == moves


def wavy_field() -> HollowField:
    """Saliencies from 0 to 1."""
    hollow = HollowField(some_field(), 8)
    with torch.no_grad():
        hollow.saliency.copy_(4.5 * torch.rand(8**3, 1, generator=torch.Generator().manual_seed(3)))
    return hollow


def seen(field: Field) -> Tensor:
    picture = render(field, around(1), 0)
    return torch.cat([picture.image, picture.opacities[..., None], picture.depths[..., None]], dim=2)


def without_voxels(field: HollowField, share: float) -> Keep:
    random = torch.Generator().manual_seed(5)
    return everything(field) | {VOXELS: torch.rand(len(field.saliency), generator=random) >= share}


def everything(field: Field) -> Keep:
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in field.groups()}


def test_voxels_are_units() -> None:
    hollow = wavy_field()
    assert_full_keep_changes_nothing(hollow)
    assert_mask_of_ones_changes_nothing(hollow, seen)
    assert_mask_equals_cut(hollow, without_voxels(hollow, 0.4), seen, rtol=1e-4, atol=1e-5)
    smaller = hollow.cut(without_voxels(hollow, 0.4))
    assert isinstance(smaller, HollowField) and len(smaller.saliency) < len(hollow.saliency)
    assert len(smaller.vertex_saliencies()) == int(smaller.present().sum()) == len(smaller.saliency)
    assert_mask_equals_cut(smaller, without_voxels(smaller, 0.5), seen, rtol=1e-4, atol=1e-5)
    both = without_voxels(smaller, 0.5) | {ROWS: torch.arange(len(smaller.table)) % 2 == 0}
    assert_mask_equals_cut(smaller, both, seen, rtol=1e-4, atol=1e-5)


def test_without_voxels_a_field_is_empty() -> None:
    hollow = wavy_field()
    nothing = hollow.cut(without_voxels(hollow, 2.0))
    assert float(seen(nothing)[..., 3].max()) < 1e-6
    assert VOXELS not in {group.name for group in nothing.groups()}
    assert_same(seen(nothing), seen(nothing.cut(everything(nothing))))
    plain = hollowed(nothing, torch.ones(8**3, dtype=torch.bool))
    assert not plain.occupancy.occupied().any()


@pytest.mark.parametrize("criterion", [Magnitude(2.0), Taylor(), Fisher(), MaskTaylor()])
def test_core_criteria_score_voxels(criterion: object) -> None:
    hollow = wavy_field()
    objective = PhotographError(photographed(4), rays=40, batches=2)
    scores = assert_deterministic(partial(criterion.score, hollow, objective))  # type: ignore[attr-defined]
    assert_scores_fit(scores, hollow.groups())
    if isinstance(criterion, Magnitude):
        assert torch.equal(scores[VOXELS].argsort(), hollow.vertex_saliencies().detach().argsort())
    group = next(group for group in hollow.groups() if group.name == VOXELS)
    keep = allocate(scores, [group], Budget(share=0.3))
    assert int(keep[VOXELS].sum()) == int(0.3 * 8**3)


def test_the_gate_skips_zeros_softly() -> None:
    values = gate(torch.tensor([[0.0, 0.0], [1e-5, 0.0], [1.0, 1.0]]))
    assert float(values[0]) == 0
    assert float(values[1]) == pytest.approx(0.0997, abs=1e-3)
    assert float(values[2]) == 1


def test_error_of_what_is_visible_falls_as_more_is_hollow() -> None:
    """One hashed table of 256 rows, fitted by least squares: the collisions that hollow space no longer makes."""
    level = (Level(30.0, 256, True),)
    random = torch.Generator().manual_seed(0)
    points = torch.rand(3000, 3, generator=random)
    visible = points[:, 0] < 0.25
    wanted = torch.where(visible, torch.sin(9 * points[:, 1]) * torch.cos(7 * points[:, 2]), 0.0)
    reads = torch.cat([encode_reference(points, rows, level) for rows in torch.eye(256).split(8, dim=1)], dim=1)
    errors = []
    for hollow in (0.0, 0.25, 0.5, 0.75):
        salient = (points[:, 0] < 1 - hollow).float()[:, None]
        masked = salient * reads
        rows = torch.linalg.lstsq(masked.double(), wanted[:, None].double(), driver="gelsd").solution
        error = (masked.double() @ rows)[:, 0] - wanted
        errors.append(float(error[visible].square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_what_is_hollow_is_never_asked_again() -> None:
    hollow = hollow_field()
    salient = torch.zeros(8**3, dtype=torch.bool)
    salient[5 + 8 * (5 + 8 * 5)] = True
    cells = visible_cells(hollow, salient)
    assert 0 < int(cells.sum()) < 16**3 // 10
    field = hollowed(hollow, salient)
    assert type(field) is Field
    assert bool(field.occupancy.occupied().equal(cells))
    rays = rays_of(around(1), 0, field.box)
    samples, _ = march(rays, field.occupancy, field.stride, torch.full((len(rays),), 1.0))
    assert bool(cells[field.occupancy.cells_of(samples.positions)].all())
    every = hollowed(hollow, torch.ones(8**3, dtype=torch.bool))
    assert_same(list(render(every, around(1), 0)), list(render(hollow, around(1), 0)))


def test_training_binds_the_mean_saliency() -> None:
    hollowing = Hollowing(share=0.2, resolution=8, start=0.0, every=2)
    training = replace(QUICK, rate=0.05, final_rate=1.0, samples=512)
    module = HollowTraining(photographed(8), training, 40, hollowing)
    before = float(module.hollow.vertex_saliencies().detach().mean())
    fit_field(module, 40, None, False, silent)
    after = module.hollow.vertex_saliencies().detach()
    assert float(after.mean()) < before / 2
    assert float(module.split.z.abs().mean()) <= 0.2 * (1 + 1e-5)
    assert module.residuals[-1].primal < module.residuals[0].primal / 2


def test_a_hollow_field_is_trained_and_plain_in_the_end() -> None:
    capture, training, hollowing = photographed(8), replace(QUICK, samples=512), Hollowing(share=0.5, resolution=8)
    field, record = train_hollow(capture, steps=20, training=training, hollowing=hollowing)
    assert type(field) is Field
    assert record.mean_saliency <= 0.5 * (1 + 1e-5)
    assert record.bound.steps == 14
    assert record.plain.steps == 6
    again, _ = train_hollow(capture, steps=20, training=training, hollowing=hollowing)
    assert_same(dict(field.state_dict()), dict(again.state_dict()))


def test_a_hollow_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    capture, training, hollowing = photographed(8), replace(QUICK, samples=512), Hollowing(share=0.5, resolution=8)
    run = partial(train_hollow, capture, steps=20, training=training, hollowing=hollowing)
    whole, record = run()

    def stopper(after: str) -> Report:
        def stop(done: float, doing: str) -> None:
            if after in doing and after not in stopped:
                stopped.append(after)
                signal.raise_signal(signal.SIGTERM)

        return stop

    stopped: list[str] = []
    # In the bound part of 14 steps, and in the plain part of 6.
    for after in ("step 9 of 14", "step 3 of 6"):
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint=tmp_path / "run.ckpt", resume=True, report=stopper(after))
    field, again = run(checkpoint=tmp_path / "run.ckpt", resume=True)
    assert len(stopped) == 2
    assert_same(dict(field.state_dict()), dict(whole.state_dict()))
    assert again.residuals == record.residuals and again.bound.losses == record.bound.losses
    with pytest.raises(ValueError, match="another run: hollow_share"):
        train_hollow(
            capture,
            steps=20,
            training=training,
            hollowing=replace(hollowing, share=0.4),
            checkpoint=tmp_path / "run.ckpt",
            resume=True,
        )


@pytest.mark.parametrize("options", [{"share": 0.0}, {"rho": 0.0}, {"every": 0}, {"start": 1.0}, {"finish": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Hollowing(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="resolution must be"):
        HollowField(some_field(), 2)
    with pytest.raises(ValueError, match="salient must be"):
        hollowed(hollow_field(), torch.ones(5, dtype=torch.bool))
