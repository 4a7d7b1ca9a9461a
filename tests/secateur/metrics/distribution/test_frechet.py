import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from secateur.metrics.distribution import (
    Moments,
    frechet_distance,
    frechet_distance_of_vectors,
    frechet_error,
    frechet_floor,
    frechet_name,
)


def normal(count: int, dimensions: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing + shift


def distance(one: Tensor, other: Tensor) -> float:
    return frechet_distance(Moments.of(one), Moments.of(other))


def by_scipy(one: Tensor, other: Tensor) -> float:
    a, b = one.numpy(), other.numpy()
    s1, s2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real)


def exact(mean: Tensor, covariance: Tensor) -> Moments:
    return Moments(2, mean.double(), covariance.double())


def test_gaussians_on_a_line() -> None:
    one, other = exact(torch.tensor([1.0]), torch.tensor([[4.0]])), exact(torch.tensor([-2.0]), torch.tensor([[25.0]]))
    assert frechet_distance(one, other) == pytest.approx((1 + 2) ** 2 + (2 - 5) ** 2)


def test_gaussians_with_commuting_covariances() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    spreads = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    means = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    one, other = (exact(mean, axes @ torch.diag(s.square()) @ axes.T) for mean, s in zip(means, spreads, strict=True))
    expected = (means[0] - means[1]).square().sum() + (spreads[0] - spreads[1]).square().sum()
    assert frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("count", "dimensions"), [(400, 16), (20, 16), (9, 16), (2, 3)])
def test_both_forms_agree_with_scipy_below_and_above_the_dimension(count: int, dimensions: int) -> None:
    one, other = normal(count, dimensions, 0), normal(count + 3, dimensions, 1, shift=0.5)
    value = distance(one, other)
    assert value == pytest.approx(by_scipy(one, other), rel=1e-5)
    assert value == pytest.approx(frechet_distance_of_vectors(one, other), rel=1e-6)


def test_it_is_symmetric_and_ignores_rotations_and_order() -> None:
    one, other = normal(50, 6, 0), normal(70, 6, 1)
    turned = torch.linalg.qr(normal(6, 6, 2)).Q
    value = distance(one, other)
    assert distance(other, one) == pytest.approx(value, rel=1e-9)
    assert distance(one @ turned, other @ turned) == pytest.approx(value, rel=1e-9)
    assert distance(one.flip(0), other) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("count", [3, 100])
def test_a_set_is_at_no_distance_from_itself(count: int) -> None:
    held = normal(count, 8, 0)
    assert distance(held, held) == pytest.approx(0, abs=1e-6)
    assert frechet_distance_of_vectors(held, held) == pytest.approx(0, abs=1e-6)


def test_constant_images_are_as_far_as_their_means_and_the_others_spread() -> None:
    constant, other = torch.full((5, 4), 2.0), normal(50, 4, 0)
    expected = (2 - other.mean(dim=0)).square().sum() + other.T.cov().trace()
    assert distance(constant, other) == pytest.approx(float(expected), rel=1e-9)
    assert distance(constant, constant + 1) == pytest.approx(4.0)


class Flat(nn.Module):
    """Three channels' means and products of them: what torchmetrics takes for a network."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        means = images.flatten(2).mean(dim=2)
        return torch.cat([means, means.roll(1, dims=1) * means], dim=1)


def test_torchmetrics_agrees() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(64, 3, 4, 4, generator=generator) ** power for power in (1.0, 1.5))
    metric = FrechetInceptionDistance(Flat())
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert distance(Flat()(real), Flat()(fake)) == pytest.approx(float(metric.compute()), rel=1e-3)


def test_one_image_has_no_spread() -> None:
    for compare in (distance, frechet_distance_of_vectors):
        with pytest.raises(ValueError, match="at least 2 vectors, got 1"):
            compare(normal(1, 4, 0), normal(9, 4, 0))


def test_vectors_that_are_not_finite_are_counted() -> None:
    broken = normal(9, 4, 0)
    broken[2:5, 1] = math.nan
    for compare in (distance, frechet_distance_of_vectors):
        with pytest.raises(ValueError, match="3 of 9 vectors"):
            compare(broken, normal(9, 4, 0))
        with pytest.raises(ValueError, match="4 and of 5 dimensions"):
            compare(normal(9, 4, 0), normal(9, 5, 0))


def test_the_floor_falls_with_the_number_of_images_and_repeats_exactly() -> None:
    real = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    reference, held_out = Moments.of(real[:2000]), real[2000:]
    floors = [frechet_floor(held_out, reference, count, draws=4) for count in (50, 200, 800)]
    assert floors == sorted(floors, reverse=True)
    assert floors[1] == pytest.approx((16**2 + 5 * 16) / 4 * (1 / 200 + 1 / 2000), rel=0.15)
    assert floors[1] == frechet_floor(held_out, reference, 200, draws=4)
    assert floors[1] != frechet_floor(held_out, reference, 200, draws=4, seed=1)


def test_a_floor_needs_images_of_its_own() -> None:
    real = normal(10, 4, 0)
    with pytest.raises(ValueError, match="as many real images apart from the reference: 10"):
        frechet_floor(real, Moments.of(real), 11)
    with pytest.raises(ValueError, match="draws"):
        frechet_floor(real, Moments.of(real), 5, draws=0)


def test_only_inception_may_be_called_fid() -> None:
    assert frechet_name("inception-2015-12-05") == "FID"
    assert frechet_name("fashion-cnn") == "FD-fashion-cnn"


def test_the_error_is_how_far_other_samples_move_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = Moments.of(torch.randn(2000, 6, generator=generator))
    sets = [1.3 * torch.randn(300, 6, generator=generator) + 0.4 for _ in range(60)]
    spread = torch.tensor([frechet_distance(Moments.of(one), reference) for one in sets]).std()
    errors = torch.tensor([frechet_error(one, reference, groups=15) for one in sets[:12]])
    assert float(errors.mean()) == pytest.approx(float(spread), rel=0.25)
    assert frechet_error(sets[0], reference) == frechet_error(sets[0], reference)
    assert frechet_error(sets[0], reference) != frechet_error(sets[0], reference, seed=1)


def test_an_error_needs_enough_vectors() -> None:
    reference = Moments.of(normal(20, 4, 0))
    with pytest.raises(ValueError, match="at least 2 groups of 3 vectors, got 29 in 10 groups"):
        frechet_error(normal(29, 4, 1), reference)
    with pytest.raises(ValueError, match="at least 2 groups"):
        frechet_error(normal(29, 4, 1), reference, groups=1)
    with pytest.raises(ValueError, match="4 and of 5 dimensions"):
        frechet_error(normal(30, 5, 1), reference)
