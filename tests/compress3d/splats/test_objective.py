"""The core's gradient and curvature criteria on splat scenes: contracts, and the error that removal really makes."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from compress3d.cameras import Cameras
from compress3d.photometric import photometric_loss
from compress3d.splats.objective import Photometric, squared_error
from compress3d.splats.pictures import Renders
from compress3d.splats.rasterize import render
from compress3d.splats.scene import GAUSSIANS, SplatScene
from secateur.allocation import Budget, allocate
from secateur.derivatives import loss_gradients
from secateur.importance import (
    Fisher,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    MaskHessian,
    MaskTaylor,
    Taylor,
)
from secateur.units import Criterion
from tests.compress3d.splats.test_importance import cameras, scene
from tests.contracts import assert_deterministic, assert_exact_budget, assert_permutes, assert_same, assert_scores_fit

FIRST: list[Criterion] = [
    Taylor(),
    Taylor(reduce="square"),
    Taylor(params=("opacities", "sh0")),
    MaskTaylor(),
    MaskTaylor(reduce="signed"),
    Fisher(),
]
SECOND: list[Criterion] = [
    HessianDiagonal(samples=2, method="central_differences"),
    HessianProduct(method="central_differences"),
    HessianTrace(HessianDiagonal(samples=2, method="central_differences", absolute=True)),
    MaskHessian(samples=2, method="central_differences"),
]


def of(target: SplatScene, count: int = 2, **options: object) -> Photometric:
    return Photometric(Renders.of(target, cameras(count)), **options)  # type: ignore[arg-type]


def removal_errors(target: SplatScene, views: Cameras) -> Tensor:
    """(N,) mean squared error of the renders without each Gaussian, one at a time."""
    whole = render(target, views)
    everything = torch.arange(len(target))
    return torch.stack(
        [(render(target.select(everything != i), views) - whole).double().square().mean() for i in everything.tolist()]
    )


def agreement(scores: Tensor, errors: Tensor) -> float:
    """Spearman's rank correlation."""
    return float(spearmanr(scores.numpy(), errors.numpy()).statistic)


@pytest.mark.parametrize("criterion", FIRST + SECOND, ids=repr)
def test_criteria_of_the_core_score_gaussians(criterion: Criterion) -> None:
    target = scene(40)
    objective = of(target, noise=0.05)
    scores = assert_deterministic(lambda: criterion.score(target, objective))
    assert_scores_fit(scores, target.groups())
    assert_same(dict(scene(40).tensors()), dict(target.tensors()))
    assert not any(tensor.requires_grad for tensor in target.tensors().values())
    for budget in (Budget(share=0.3), Budget(limit=1000, cost="bytes")):
        assert_exact_budget(allocate(scores, target.groups(), budget), target.groups(), budget)


@pytest.mark.parametrize("criterion", [*FIRST, HessianProduct(method="central_differences")], ids=repr)
def test_scores_permute_with_the_gaussians(criterion: Criterion) -> None:
    objective = of(scene(40), noise=0.05)
    scores = criterion.score(scene(40), objective)[GAUSSIANS]
    assert_permutes(
        lambda target: criterion.score(target, objective),
        scene(40),
        lambda target, order: target.select(order),
        GAUSSIANS,
        1e-2,
        2e-3 * float(scores.abs().max()),
    )


def test_mask_curvature_is_the_error_that_removal_makes() -> None:
    target = scene(60)
    errors = removal_errors(target, cameras(2))
    few = MaskHessian(samples=8, method="central_differences").score(target, of(target))[GAUSSIANS]
    many = MaskHessian(samples=48, method="central_differences").score(target, of(target))[GAUSSIANS]
    assert agreement(few, errors) > 0.8
    assert agreement(many, errors) > 0.9
    # At a mask of ones the pixels are linear in each mask, so the quadratic term is all there is.
    strongest = errors.topk(10).indices
    torch.testing.assert_close(many.double()[strongest], errors[strongest], rtol=0.5, atol=0)


def test_squares_under_noise_order_as_removal_does() -> None:
    """With white noise on the pictures, squared mask gradients average to the diagonal of J^T J."""
    target = scene(60)
    errors = removal_errors(target, cameras(2))
    few, many = (
        MaskTaylor(reduce="square").score(target, of(target, noise=0.01, repeats=repeats))[GAUSSIANS]
        for repeats in (2, 40)
    )
    assert agreement(many, errors) > 0.95
    assert agreement(many, errors) > agreement(few, errors) > 0.5


def test_curvature_beats_a_gradient_where_there_is_none() -> None:
    target = scene(60)
    errors = removal_errors(target, cameras(2))
    gradient = MaskTaylor().score(target, of(target))[GAUSSIANS]
    assert float(gradient.max()) < 1e-5 * float(errors.max()) ** 0.5
    trace = HessianTrace(HessianDiagonal(samples=8, method="central_differences", absolute=True))
    assert agreement(trace.score(target, of(target))[GAUSSIANS], errors) > 0.5


def test_against_other_pictures_the_signed_gradient_tells_what_harms() -> None:
    """Pictures without the last five Gaussians: what is too much has a score below 0."""
    target = scene(40)
    target = target.with_tensors(opacities=target.opacities.clamp_max(0.0))
    visible = removal_errors(target, cameras(2)).topk(5).indices
    others = torch.ones(40, dtype=torch.bool)
    others[visible] = False
    objective = Photometric(Renders.of(target.select(others), cameras(2)))
    scores = MaskTaylor(reduce="signed").score(target, objective)[GAUSSIANS]
    assert bool((scores[visible] < 0).all())


def test_losses_are_errors_of_views_in_order_and_repeat_with_other_noise() -> None:
    target, other = scene(30), scene(30, seed=1)
    pictures = Renders.of(other, cameras(3))
    images, wanted = render(target, cameras(3)), render(other, cameras(3))
    plain = torch.stack(list(Photometric(pictures).losses(target)))
    torch.testing.assert_close(plain, (images - wanted).square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-7)
    structural = torch.stack(list(Photometric(pictures, error=photometric_loss).losses(target)))
    expected = [photometric_loss(image, picture) for image, picture in zip(images, wanted, strict=True)]
    torch.testing.assert_close(structural, torch.stack(expected), rtol=1e-4, atol=1e-6)
    noisy = list(Photometric(pictures, noise=0.1, repeats=2).losses(target))
    assert len(noisy) == 6 and len({float(loss) for loss in noisy}) == 6


def test_background_and_masks_of_pictures_count() -> None:
    class Masked(Renders):
        def mask(self, index: int) -> Tensor:  # type: ignore[override]
            return torch.zeros(self.cameras.height, self.cameras.width)

    target, other = scene(30), scene(30, seed=1)
    black = next(Photometric(Renders.of(other, cameras(1)), background=(0.0, 0.0, 0.0)).losses(target))
    white = next(Photometric(Renders.of(other, cameras(1))).losses(target))
    assert not torch.isclose(black, white, rtol=1e-3)
    seen = Renders.of(other, cameras(1))
    nothing = Photometric(Masked(seen.cameras, seen.colors, seen.alphas))
    assert float(next(nothing.losses(target))) == 0.0


def test_one_graph_lives_at_a_time() -> None:
    target = scene(20)
    target.means.requires_grad_(True)
    gradients = list(loss_gradients(of(scene(20, seed=1), 3).losses(target), {"means": target.means}))
    assert len(gradients) == 3 and all(bool(each["means"].any()) for each in gradients)


def test_wrong_options_are_refused() -> None:
    pictures = Renders.of(scene(5), cameras(1))
    with pytest.raises(ValueError, match="at least one picture"):
        Photometric(Renders.of(scene(5), cameras(1)[:0]))
    with pytest.raises(ValueError, match="noise"):
        Photometric(pictures, noise=-1.0)
    with pytest.raises(ValueError, match="repeats"):
        Photometric(pictures, repeats=0)
    assert float(squared_error(torch.ones(2, 2, 3), torch.zeros(2, 2, 3))) == 1.0
