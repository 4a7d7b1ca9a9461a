"""Learned masks: what they multiply, the house's contracts, and that they drop what no picture needs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.mask_training import LearnedMask, shrunk
from compress3d.splats.pictures import Renders
from compress3d.splats.rasterize import render
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.allocation import Budget
from secateur.masks import HardConcrete, StraightThrough
from tests.compress3d.splats.test_importance import cameras, scene
from tests.contracts import assert_deterministic, assert_exact_budget, assert_same, assert_scores_fit

SHORT = {"steps": 4, "rate": 0.1}
KINDS = [HardConcrete, StraightThrough]


def drawn(target: SplatScene, mask: Tensor, views: Cameras) -> Tensor:
    with shrunk(target, {GAUSSIANS: mask}) as seen:
        return render(seen, views)


def test_ones_change_nothing_and_zeros_are_the_cut() -> None:
    target, views = scene(), cameras(2)
    assert_same(render(target, views), drawn(target, torch.ones(60), views))
    keep = torch.arange(60) % 3 > 0
    torch.testing.assert_close(
        drawn(target, keep.float(), views), render(target.cut({GAUSSIANS: keep}), views), rtol=1e-5, atol=1e-6
    )
    assert_same(render(scene(), views), render(target, views))


def test_the_mask_shrinks_opacity_and_size() -> None:
    target, views = scene(), cameras(1)
    mask = torch.linspace(0.2, 1.0, 60)
    smaller = target.with_tensors(
        scales=target.scales + mask.log()[:, None],
        opacities=torch.logit(torch.sigmoid(target.opacities) * mask),
    )
    torch.testing.assert_close(drawn(target, mask, views), render(smaller, views), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_mask_through_both() -> None:
    target, views = scene(20), cameras(1)
    mask = torch.full((20,), 0.7, requires_grad=True)
    toward = torch.randn(1, 40, 40, 3, generator=torch.Generator().manual_seed(0))
    (slopes,) = torch.autograd.grad((drawn(target, mask, views) * toward).sum(), mask)
    step = 2e-3
    for index in slopes.abs().topk(6).indices.tolist():
        ends = []
        for sign in (1, -1):
            moved = mask.detach().clone()
            moved[index] += sign * step
            ends.append(float((drawn(target, moved, views) * toward).double().sum()))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(slopes[index]), rel=0.1, abs=0.05)
    edge = torch.tensor([0.0, 1e-8, *[1.0] * 18], requires_grad=True)
    (slopes,) = torch.autograd.grad((drawn(target, edge, views) * toward).sum(), edge)
    assert bool(torch.isfinite(slopes).all())


@pytest.mark.parametrize("kind", KINDS)
def test_criterion_keeps_its_contracts(kind: type[HardConcrete | StraightThrough]) -> None:
    target = scene(30)
    criterion = LearnedMask(kind, **SHORT)
    scores = assert_deterministic(partial(criterion.score, target, cameras(2)))
    assert_scores_fit(scores, target.groups())
    assert_same(dict(scene(30).tensors()), dict(target.tensors()))
    assert_same(scores, criterion.score(target, Renders.of(target, cameras(2))))


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_hardens_to_an_exact_count(kind: type[HardConcrete | StraightThrough]) -> None:
    target = scene(30)
    mask, record = LearnedMask(kind, **SHORT).fit(target, Renders.of(target, cameras(2)))
    assert record.steps == 4 and not mask.training
    for count in (1, 13, 30):
        keep = mask.keep(Budget(limit=count))
        assert_exact_budget(keep, target.groups(), Budget(limit=count))
        assert len(target.cut(keep)) == count


def test_no_penalty_and_no_step_keep_everything() -> None:
    target = scene(30)
    for kind in KINDS:
        mask, _ = LearnedMask(kind, steps=0).fit(target, Renders.of(target, cameras(1)))
        assert bool(mask.keep()[GAUSSIANS].all())
    mask, _ = LearnedMask(StraightThrough, steps=20, rate=0.02, weight=0.0).fit(target, Renders.of(target, cameras(1)))
    assert bool(mask.keep()[GAUSSIANS].all())


def wall_with_waste() -> tuple[SplatScene, Cameras, Tensor]:
    """A solid wall of 36 coloured Gaussians in sight, each doubled by one that it hides, and 12 far behind it.

    The last is (N,) bool: True for the 36 that are needed.
    """
    random = torch.Generator().manual_seed(0)
    x, y = torch.meshgrid(torch.linspace(-0.5, 0.5, 6), torch.linspace(-0.5, 0.5, 6), indexing="ij")
    wall = torch.stack([x.reshape(-1), y.reshape(-1), torch.zeros(36)], dim=1)
    behind = torch.cat([0.4 * torch.randn(12, 2, generator=random).clamp(-1, 1), torch.full((12, 1), 0.8)], dim=1)
    means = torch.cat([wall, wall + torch.tensor([0, 0, 0.05]), behind])
    colors = torch.randn(36, 1, 3, generator=random)
    scales = torch.tensor([-1.9, -1.9, -4.0]).expand(84, 3).clone()
    scales[36:] -= 1.2
    order = torch.randperm(84, generator=random)
    needed = torch.arange(84) < 36
    whole = SplatScene(
        means=means,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(84, 1),
        scales=scales,
        opacities=torch.full((84,), 9.0),
        sh0=torch.cat([colors, colors, torch.randn(12, 1, 3, generator=random)]),
        shN=torch.zeros(84, 0, 3),
    )
    viewmats = torch.eye(4).repeat(2, 1, 1)
    viewmats[:, 2, 3], viewmats[1, 0, 3] = 2.0, 0.05
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]).repeat(2, 1, 1)
    return whole.select(order), Cameras(viewmats, K, 32, 32), needed[order]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_drop_what_no_picture_needs(kind: type[HardConcrete | StraightThrough]) -> None:
    target, views, needed = wall_with_waste()
    mask, _ = LearnedMask(kind, steps=150, weight=0.05, share=0.0).fit(target, Renders.of(target, views))
    keep = mask.keep(Budget(limit=36))
    assert int((keep[GAUSSIANS] & needed).sum()) >= 34
    error = float((render(target.cut(keep), views) - render(target, views)).square().mean())
    random = torch.randperm(84, generator=torch.Generator().manual_seed(0))[:36]
    by_chance = float((render(target.select(random), views) - render(target, views)).square().mean())
    assert error < 0.05 * by_chance


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_rests_below_the_share(kind: type[HardConcrete | StraightThrough]) -> None:
    target, views, _ = wall_with_waste()
    pictures, kept = Renders.of(target, views), []
    for share in (0.0, 0.7):
        mask, _ = LearnedMask(kind, share=share, steps=200, weight=0.05).fit(target, pictures)
        kept.append(float(mask.keep()[GAUSSIANS].float().mean()))
    assert kept[0] < 0.5 and kept[0] < kept[1] <= 0.8, kept


def test_a_stopped_fit_goes_on_where_it_was(tmp_path: Path) -> None:
    target = scene(30)
    criterion, pictures, path = LearnedMask(**SHORT), Renders.of(target, cameras(2)), tmp_path / "mask.ckpt"
    first, _ = criterion.fit(target, pictures, checkpoint=path)
    again, record = criterion.fit(target, pictures, checkpoint=path, resume=True)
    assert_same([*first.logits], [*again.logits])
    assert record.steps == 4


def test_pictures_are_asked_for() -> None:
    with pytest.raises(ValueError, match="learned from pictures"):
        LearnedMask().score(scene(5))
    with pytest.raises(ValueError, match="there is none"):
        LearnedMask().score(scene(5), cameras(1)[:0])
