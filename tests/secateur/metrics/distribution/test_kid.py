import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from secateur.metrics.distribution import kernel_distance
from secateur.metrics.distribution.kid import squared_discrepancy


def normal(count: int, dimensions: int = 4, seed: int = 0, shift: float = 0.0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


def test_the_discrepancy_is_its_definition_over_pairs() -> None:
    one, other = normal(5).double(), normal(4, seed=1, shift=1.0).double()

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within = sum(kernel(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j) / 20
    within += sum(kernel(x, y) for i, x in enumerate(other) for j, y in enumerate(other) if i != j) / 12
    across = sum(kernel(x, y) for x in one for y in other) / 20
    assert squared_discrepancy(one, other) == pytest.approx(within - 2 * across, rel=1e-10)


class Means(nn.Module):
    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mean(dim=2)


def test_torchmetrics_agrees_on_the_whole_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.rand(32, 3, 4, 4, generator=generator) ** power for power in (1.0, 2.0))
    metric = KernelInceptionDistance(Means(), subsets=2, subset_size=32)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    mean, _ = metric.compute()
    ours = kernel_distance(Means()(fake), Means()(real), subsets=2, subset_size=32)
    assert ours.mean == pytest.approx(float(mean), rel=1e-3)
    assert ours.std == pytest.approx(0, abs=1e-12)


def test_it_is_unbiased() -> None:
    values = torch.tensor([squared_discrepancy(normal(10, seed=2 * n), normal(10, seed=2 * n + 1)) for n in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20
    assert float(values.min()) < 0


def test_the_same_seed_draws_the_same_subsets_and_touches_no_global_state() -> None:
    one, other = normal(60), normal(50, seed=1, shift=0.3)
    state = torch.random.get_rng_state()
    first = kernel_distance(one, other, subsets=5, subset_size=20)
    assert first == kernel_distance(one, other, subsets=5, subset_size=20)
    assert first != kernel_distance(one, other, subsets=5, subset_size=20, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (first.subsets, first.subset_size) == (5, 20)
    assert first.std > 0


@pytest.mark.parametrize("size", [1, 51])
def test_subsets_that_cannot_be_drawn_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="subset_size must be 2 to 50"):
        kernel_distance(normal(60), normal(50), subset_size=size)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        kernel_distance(normal(60), normal(50), subsets=0, subset_size=10)


def test_one_image_is_too_few_and_broken_ones_are_counted() -> None:
    with pytest.raises(ValueError, match="got 1 and 9"):
        squared_discrepancy(normal(1), normal(9))
    broken = normal(9)
    broken[4] = torch.nan
    with pytest.raises(ValueError, match="1 of 9 vectors"):
        kernel_distance(broken, normal(9), subset_size=4)


def test_a_set_against_itself_is_below_zero_by_what_its_pairs_with_themselves_add() -> None:
    held = normal(30).double()
    kernel = (held @ held.T / 4 + 1) ** 3
    expected = 2 * ((kernel.sum() - kernel.trace()) / (30 * 29) - kernel.mean())
    assert squared_discrepancy(held, held) == pytest.approx(float(expected), rel=1e-10)
    assert squared_discrepancy(held, held) < 0
    assert squared_discrepancy(held, held.flip(0)) == pytest.approx(float(expected), rel=1e-10)


def test_constant_sets_are_as_far_as_their_kernel_says() -> None:
    one, other = torch.full((5, 4), 1.0), torch.full((7, 4), -1.0)
    assert squared_discrepancy(one, other) == pytest.approx(8 + 8 - 2 * 0)
    assert squared_discrepancy(one, torch.full((3, 4), 1.0)) == pytest.approx(0, abs=1e-12)
