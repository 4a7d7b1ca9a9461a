"""Criteria for Gaussians: the house's contracts, the papers' equations, and small scenes with a known answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.splats.importance import (
    GlobalSignificance,
    MiniSplatting,
    Opacity,
    OpacityArea,
    OpacityVolume,
    RayContribution,
    Reduction,
    Spectral,
    Visibility,
    surfaces,
    volumes,
)
from compress3d.splats.rasterize import render
from compress3d.splats.rasterize.contributions import RayContributions, ray_contributions
from compress3d.splats.scene import GAUSSIANS, SplatScene
from compress3d.splats.views import look_at
from secateur.allocation import Budget, allocate
from secateur.graphs import NearestNeighbours, WithinRadius
from secateur.importance import Magnitude, Product, Random, RankMixture, Sampled
from secateur.importance.spectral import Laplacian, SmoothBand
from secateur.units import Criterion
from tests.contracts import (
    assert_deterministic,
    assert_exact_budget,
    assert_full_keep_changes_nothing,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)

REDUCTIONS: list[Reduction] = ["sum", "max", "pixel_normalised", "count", "top1"]
WITHOUT_VIEWS: list[Criterion] = [
    Opacity(),
    OpacityVolume(),
    OpacityArea(),
    Spectral(keep="high"),
    Spectral(keep="low", signals=("position",), graph=WithinRadius(), filter=Laplacian("combinatorial")),
    Spectral(gamma=0.3, graph=NearestNeighbours(8), filter=SmoothBand(0.4, 1.5)),
    Magnitude(params=("sh0",)),
]
WITH_VIEWS: list[Criterion] = [
    *(RayContribution(reduce=reduce) for reduce in REDUCTIONS),
    Visibility(),
    MiniSplatting(),
    MiniSplatting(outdoor=False),
    GlobalSignificance(),
    Product((RayContribution(), OpacityArea()), powers=(1.0, 0.2)),
    RankMixture((RayContribution("sum"), Spectral(keep="high"))),
]
WITH_CHANCE: list[Criterion] = [Random(1), Sampled(MiniSplatting(), uniform=0.1, seed=2)]


def scene(n: int = 60, seed: int = 0) -> SplatScene:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return SplatScene(
        means=normal(n, 3) * 0.5,
        quats=normal(n, 4),
        scales=normal(n, 3) * 0.4 - 2.2,
        opacities=normal(n) * 1.5,
        sh0=normal(n, 1, 3) * 0.5,
        shN=normal(n, 3, 3) * 0.1,
    )


def cameras(count: int = 3, size: int = 40) -> Cameras:
    azimuths = torch.arange(count) * (2 * torch.pi / count)
    positions = 4 * torch.stack([azimuths.cos(), torch.full((count,), -0.3), azimuths.sin()], dim=1).numpy()
    K = torch.tensor([[1.1 * size, 0, size / 2], [0, 1.1 * size, size / 2], [0, 0, 1]])
    return Cameras(look_at(positions, positions * 0), K.expand(count, 3, 3).contiguous(), size, size)


def given(**statistics: list[float]) -> RayContributions:
    n = len(next(iter(statistics.values())))
    floats = {name: torch.zeros(n) for name in ("sum", "max", "pixel_normalised", "transmittance")}
    whole = {name: torch.zeros(n, dtype=torch.int64) for name in ("count", "top1")}
    for name, values in statistics.items():
        target = floats if name in floats else whole
        target[name] = torch.tensor(values, dtype=target[name].dtype)
    return RayContributions(**floats, **whole)


@pytest.fixture(scope="module")
def seen() -> RayContributions:
    return ray_contributions(scene(), cameras())


@pytest.mark.parametrize("criterion", WITHOUT_VIEWS + WITH_VIEWS + WITH_CHANCE, ids=repr)
def test_criteria_score_every_gaussian_and_leave_the_scene_alone(criterion: Criterion, seen: RayContributions) -> None:
    target = scene()
    scores = assert_deterministic(lambda: criterion.score(target, seen))
    assert_scores_fit(scores, target.groups())
    assert_same(dict(scene().tensors()), dict(target.tensors()))
    for budget in (Budget(share=0.3), Budget(limit=1000, cost="bytes")):
        assert_exact_budget(allocate(scores, target.groups(), budget), target.groups(), budget)
    everything = allocate(scores, target.groups(), Budget(share=1.0))
    assert bool(everything[GAUSSIANS].all())


@pytest.mark.parametrize("criterion", WITHOUT_VIEWS, ids=repr)
def test_scores_permute_with_the_gaussians(criterion: Criterion) -> None:
    assert_permutes(criterion.score, scene(), lambda target, order: target.select(order), GAUSSIANS, 1e-4, 1e-5)


@pytest.mark.parametrize("criterion", WITH_VIEWS, ids=repr)
def test_scores_through_cameras_permute_with_the_gaussians(criterion: Criterion) -> None:
    views = cameras(2)
    assert_permutes(
        lambda target: criterion.score(target, views),
        scene(),
        lambda target, order: target.select(order),
        GAUSSIANS,
        1e-3,
        1e-4,
    )


@pytest.mark.parametrize(
    "criterion", [RayContribution(), Visibility(), MiniSplatting(), GlobalSignificance()], ids=repr
)
def test_cameras_stand_for_the_contributions_through_them(criterion: Criterion, seen: RayContributions) -> None:
    assert_same(criterion.score(scene(), cameras()), criterion.score(scene(), seen))


@pytest.mark.parametrize(
    "criterion", [RayContribution(), Visibility(), MiniSplatting(), GlobalSignificance()], ids=repr
)
def test_rays_are_asked_for_by_name(criterion: Criterion, seen: RayContributions) -> None:
    with pytest.raises(ValueError, match="pass the scene's RayContributions, or Cameras"):
        criterion.score(scene())
    with pytest.raises(ValueError, match="of 60 Gaussians, the scene has 59"):
        criterion.score(scene(59), seen)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_ray_contribution_hands_on_the_statistic(reduce: Reduction) -> None:
    contributions = given(**{reduce: [3.0, 1.0, 2.0]})
    assert RayContribution(reduce).score(scene(3), contributions)[GAUSSIANS].tolist() == [3.0, 1.0, 2.0]


def test_a_gaussian_hidden_in_all_views_scores_0_and_its_removal_leaves_the_images_equal() -> None:
    """RadSplat's check: what never contributes can go."""
    target = scene()
    wall = torch.tensor([[0.0, 0.0, 0.0]])
    hidden = torch.tensor([[0.0, 0.0, 2.0]])
    front = SplatScene(
        means=torch.cat([target.means * 0.1 + torch.tensor([0, 0, -1.0]), *[wall] * 4, hidden]),
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(65, 1),
        scales=torch.cat([target.scales - 1, torch.full((4, 3), 1.0), torch.full((1, 3), -4.0)]),
        opacities=torch.cat([target.opacities, torch.full((5,), 12.0)]),
        sh0=torch.cat([target.sh0, torch.ones(5, 1, 3)]),
        shN=torch.zeros(65, 0, 3),
    )
    K = torch.tensor([[[80.0, 0, 16], [0, 80, 16], [0, 0, 1]]])
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    view = Cameras(viewmat[None], K, 32, 32)
    for reduce in REDUCTIONS:
        scores = RayContribution(reduce).score(front, view)[GAUSSIANS]
        assert scores[-1] == 0 and scores[0] > 0
    without = front.select(torch.arange(64))
    assert_same(render(front, view), render(without, view))


def test_mini_splatting_drops_what_is_never_foremost() -> None:
    contributions = given(sum=[5.0, 7.0, 1.0], pixel_normalised=[0.5, 0.2, 0.9], top1=[3, 0, 1])
    assert MiniSplatting().score(scene(3), contributions)[GAUSSIANS].tolist() == pytest.approx([0.5, 0, 0.9])
    assert MiniSplatting(outdoor=False).score(scene(3), contributions)[GAUSSIANS].tolist() == [5.0, 0.0, 1.0]


def test_visibility_ranks_by_largest_weight_and_by_rays_led() -> None:
    contributions = given(max=[0.9, 0.5, 0.1, 0.7], top1=[0, 5, 9, 1])
    assert Visibility(0.0).score(scene(4), contributions)[GAUSSIANS].argsort().tolist() == [2, 1, 3, 0]
    assert Visibility(1.0).score(scene(4), contributions)[GAUSSIANS].argsort().tolist() == [0, 3, 1, 2]
    even = Visibility().score(scene(4), contributions)[GAUSSIANS] * 4
    assert even.tolist() == [2.0, 2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="foremost"):
        Visibility(2.0)


def test_global_significance_against_its_equation() -> None:
    target = scene(20)
    light = torch.arange(20).float()
    scores = GlobalSignificance(beta=0.3).score(target, given(transmittance=light.tolist()))[GAUSSIANS]
    volume = target.scales.exp().prod(dim=1)
    reference = volume.sort().values[17]
    expected = torch.sigmoid(target.opacities) * light * (volume / reference).clamp(max=1) ** 0.3
    torch.testing.assert_close(scores, expected)
    assert int((volume >= reference).sum()) == 3


@pytest.mark.parametrize("log_scale", [-80.0, 25.0])
def test_extreme_sizes_give_no_nan(log_scale: float) -> None:
    target = scene(10).with_tensors(scales=torch.full((10, 3), log_scale))
    for criterion in (OpacityVolume(), OpacityArea(), GlobalSignificance(), Spectral()):
        scores = criterion.score(target, given(transmittance=[1.0] * 10))[GAUSSIANS]
        assert not bool(torch.isnan(scores).any()), criterion


def test_size_criteria_on_a_sphere_a_disc_and_a_needle() -> None:
    radii = torch.tensor([[2.0, 2.0, 2.0], [3.0, 3.0, 1e-6], [3.0, 1e-6, 1e-6]])
    target = scene(3).with_tensors(scales=radii.log())
    torch.testing.assert_close(surfaces(target)[0], torch.tensor(4 * torch.pi * 4))
    torch.testing.assert_close(surfaces(target)[1], torch.tensor(2 * torch.pi * 9), rtol=0.011, atol=0)
    torch.testing.assert_close(volumes(target), radii.prod(dim=1))
    opacity = torch.sigmoid(target.opacities)
    torch.testing.assert_close(Opacity().score(target)[GAUSSIANS], opacity)
    torch.testing.assert_close(OpacityVolume().score(target)[GAUSSIANS], opacity * radii.prod(dim=1))
    torch.testing.assert_close(OpacityArea().score(target)[GAUSSIANS], opacity * surfaces(target))


def test_a_mask_lowers_opacity_scores() -> None:
    target = scene()
    with target.masked({GAUSSIANS: torch.full((60,), 0.5)}):
        halved = Opacity().score(target)[GAUSSIANS]
    torch.testing.assert_close(halved, Opacity().score(target)[GAUSSIANS] / 2)


def sheet(side: int = 20) -> SplatScene:
    """A flat sheet of equal Gaussians, black on its left half and white on its right."""
    x, y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    n = side * side
    return SplatScene(
        means=torch.stack([x, y, torch.zeros_like(x)], dim=-1).reshape(n, 3).float() * 0.1,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(n, 4).clone(),
        scales=torch.full((n, 3), -3.0),
        opacities=torch.full((n,), 2.0),
        sh0=torch.where(x >= side // 2, 1.0, -1.0).reshape(n, 1, 1).expand(n, 1, 3).clone(),
        shN=torch.zeros(n, 0, 3),
    )


def test_high_pass_finds_the_edge_between_colours() -> None:
    target = sheet()
    scores = Spectral(keep="high", signals=("colour",), graph=WithinRadius(0.15)).score(target)[GAUSSIANS]
    at_edge = (target.means[:, 0] - 0.95).abs() < 0.1
    assert scores[at_edge].min() > 0.5 and scores[~at_edge].max() < 1e-4


def test_high_pass_of_position_finds_the_border_and_floaters() -> None:
    target = sheet()
    target = target.with_tensors(means=torch.cat([target.means[:-1], torch.tensor([[1.0, 1.0, 0.13]])]))
    scores = Spectral(keep="high", signals=("position",)).score(target)[GAUSSIANS]
    low = Spectral(keep="low", signals=("position",)).score(target)[GAUSSIANS]
    assert torch.equal(low, -scores)
    assert scores[-1] > torch.quantile(scores, 0.9)
    inside = ((target.means[:, :2] > 0.55) & (target.means[:, :2] < 0.75)).all(dim=1)
    assert scores[inside].max() < torch.quantile(scores, 0.7)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
def test_a_mixture_keeps_both_ends_at_any_budget(gamma: float) -> None:
    target = scene()
    high = Spectral(keep="high").score(target)[GAUSSIANS]
    order = high.argsort(descending=True)
    for k in (7, 30, 51):
        keep = allocate(Spectral(gamma=gamma).score(target), target.groups(), Budget(limit=k))[GAUSSIANS]
        strong = int(gamma * k + 0.5)
        expected = torch.cat([order[:strong], order[60 - (k - strong) :]])
        assert set(keep.nonzero()[:, 0].tolist()) == set(expected.tolist())


def test_wrong_spectral_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma"):
        Spectral(gamma=1.5)
    with pytest.raises(ValueError, match="at least one signal"):
        Spectral(signals=())


def test_ray_contributions_beat_chance() -> None:
    """On a scene of few large and many tiny Gaussians, a quarter chosen by contribution looks more like the whole."""
    target = scene(400, seed=3)
    target = target.with_tensors(scales=target.scales + torch.randn(400, 1, generator=torch.Generator().manual_seed(1)))
    whole = render(target, cameras(2))
    errors = []
    for criterion in (RayContribution("sum"), Random()):
        keep = allocate(criterion.score(target, cameras(3)), target.groups(), Budget(share=0.25))
        errors.append(float((render(target.cut(keep), cameras(2)) - whole).square().mean()))
    assert errors[0] < 0.5 * errors[1]


def test_a_full_budget_gives_the_same_scene() -> None:
    assert_full_keep_changes_nothing(scene())
