"""Criteria of how pixels react to a Gaussian: the house's contracts, known answers, and what removal really costs."""

from __future__ import annotations

import math

import pytest
import torch

from compress3d.cameras import Cameras
from compress3d.splats.objective import Photometric
from compress3d.splats.pictures import Renders
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.sensitivity import fisher_information
from compress3d.splats.scene import GAUSSIANS, SplatScene
from compress3d.splats.sensitivity import PupFisher, RemovalError, SpeedyScore
from secateur.allocation import Budget, allocate
from secateur.importance import MaskHessian, Random
from secateur.units import Criterion
from tests.compress3d.splats.test_importance import cameras, scene
from tests.compress3d.splats.test_objective import agreement, removal_errors
from tests.contracts import assert_deterministic, assert_exact_budget, assert_permutes, assert_same, assert_scores_fit

CRITERIA: list[Criterion] = [
    PupFisher(),
    PupFisher("summed", "log"),
    SpeedyScore(),
    RemovalError(),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_criteria_keep_their_contracts(criterion: Criterion) -> None:
    target = scene()
    scores = assert_deterministic(lambda: criterion.score(target, cameras(2)))
    assert_scores_fit(scores, target.groups())
    assert_same(dict(scene().tensors()), dict(target.tensors()))
    for budget in (Budget(share=0.3), Budget(limit=1000, cost="bytes")):
        assert_exact_budget(allocate(scores, target.groups(), budget), target.groups(), budget)
    assert_permutes(
        lambda one: criterion.score(one, cameras(2)),
        target,
        lambda one, order: one.select(order),
        GAUSSIANS,
        1e-3,
        1e-2,
    )


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_views_are_asked_for(criterion: Criterion) -> None:
    with pytest.raises(ValueError, match="pass the Cameras"):
        criterion.score(scene(5))
    with pytest.raises(ValueError, match="pass the Cameras"):
        criterion.score(scene(5), cameras(1)[:0])


def test_removal_error_is_what_removal_costs() -> None:
    target = scene(60)
    errors = removal_errors(target, cameras(2))
    scores = RemovalError().score(target, cameras(2))[GAUSSIANS]
    assert agreement(scores, errors) > 0.999
    probed = MaskHessian(48, method="central_differences").score(target, Photometric(Renders.of(target, cameras(2))))
    assert agreement(scores, probed[GAUSSIANS]) > 0.9


def test_pup_and_speedy_agree_with_removal_on_the_whole() -> None:
    target = scene(80)
    errors = removal_errors(target, cameras(4))
    assert agreement(SpeedyScore().score(target, cameras(4))[GAUSSIANS], errors) > 0.9
    for scale in ("linear", "log"):
        assert agreement(PupFisher(scale=scale).score(target, cameras(4))[GAUSSIANS], errors) > 0.9


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_a_half_chosen_by_sensitivity_looks_more_like_the_whole_than_chance(criterion: Criterion) -> None:
    target = scene(400, seed=3)
    target = target.with_tensors(scales=target.scales + torch.randn(400, 1, generator=torch.Generator().manual_seed(1)))
    whole, errors = render(target, cameras(2)), []
    for chosen in (criterion, Random()):
        keep = allocate(chosen.score(target, cameras(3)), target.groups(), Budget(share=0.5))
        errors.append(float((render(target.cut(keep), cameras(2)) - whole).square().mean()))
    assert errors[0] < errors[1]


def hidden_behind_a_wall() -> tuple[SplatScene, Cameras]:
    """Small Gaussians in front of an opaque wall of four, and one behind it, last."""
    front = scene(20)
    far = torch.tensor([[0.0, 0.0, 0.0]])
    whole = SplatScene(
        means=torch.cat([front.means * 0.1 + torch.tensor([0, 0, -1.0]), *[far] * 4, torch.tensor([[0.0, 0, 2]])]),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(25, 1),
        scales=torch.cat([front.scales - 1, torch.full((4, 3), 1.0), torch.full((1, 3), -2.0)]),
        opacities=torch.cat([front.opacities, torch.full((5,), 12.0)]),
        sh0=torch.cat([front.sh0, torch.ones(5, 1, 3)]),
        shN=torch.zeros(25, 0, 3),
    )
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    K = torch.tensor([[[80.0, 0, 16], [0, 80, 16], [0, 0, 1]]])
    return whole, Cameras(viewmat[None], K, 32, 32)


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_what_is_hidden_scores_lowest(criterion: Criterion) -> None:
    target, view = hidden_behind_a_wall()
    scores = criterion.score(target, view)[GAUSSIANS]
    assert float(scores[-1]) == (-math.inf if isinstance(criterion, PupFisher) else 0.0)
    assert int((scores > scores[-1]).sum()) >= 20


def test_pup_is_the_log_determinant_of_the_information() -> None:
    target = scene(30)
    information = fisher_information(target, cameras(3))
    well_seen = information.diagonal(dim1=1, dim2=2).amin(dim=1) > 0
    expected = torch.linalg.slogdet(information[well_seen]).logabsdet
    ours = PupFisher(ridge=1e-12).score(target, cameras(3))[GAUSSIANS]
    torch.testing.assert_close(ours[well_seen], expected, rtol=0, atol=1e-3)
    summed = fisher_information(target, cameras(3), "summed")
    assert agreement(PupFisher("summed").score(target, cameras(3))[GAUSSIANS], summed.logdet()) > 0.99
    logarithmic = PupFisher(scale="log", ridge=1e-12).score(target, cameras(3))[GAUSSIANS]
    scales = torch.exp(target.scales.double())
    stretch = torch.diag_embed(torch.cat([torch.ones_like(scales), scales], dim=1))
    expected = torch.linalg.slogdet(stretch @ information @ stretch).logabsdet
    torch.testing.assert_close(logarithmic[well_seen], expected[well_seen], rtol=0, atol=1e-3)


def test_wrong_options_are_refused() -> None:
    for options in ({"channels": "mixed"}, {"scale": "cubic"}, {"ridge": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PupFisher(**options)  # type: ignore[arg-type]
