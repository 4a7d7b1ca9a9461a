"""Plans against assignments and POT, and the soft top-k against the plan that it stands for."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from secateur.maths import topk_mask
from secateur.solvers.transport import sinkhorn, soft_topk, transport
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import generator


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=generator(seed), dtype=torch.float64)


def uniform(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def test_the_exact_plan_of_equal_masses_is_the_best_assignment() -> None:
    costs = rand(7, 7)
    rows, columns = linear_sum_assignment(costs.numpy())
    expected = torch.zeros(7, 7, dtype=torch.float64)
    expected[rows, columns] = 1 / 7
    torch.testing.assert_close(transport(costs, uniform(7), uniform(7)), expected)


def test_sinkhorn_at_a_low_temperature_is_the_best_assignment() -> None:
    costs = rand(6, 6, seed=3)
    plan, _ = sinkhorn(costs, uniform(6), uniform(6), 2e-3, iterations=20_000)
    torch.testing.assert_close(plan, transport(costs, uniform(6), uniform(6)), rtol=0, atol=1e-3)


def test_marginals_and_warm_starts() -> None:
    costs, sources, targets = rand(8, 3), rand(8, seed=1) + 0.1, rand(3, seed=2) + 0.1
    sources, targets = sources / sources.sum(), targets / targets.sum()
    plan, potentials = sinkhorn(costs, sources, targets, 0.05)
    for each in (plan, transport(costs, sources, targets)):
        torch.testing.assert_close(each.sum(1), sources, rtol=0, atol=1e-7)
        torch.testing.assert_close(each.sum(0), targets, rtol=0, atol=1e-7)
        assert float(each.min()) >= 0
    again, _ = sinkhorn(costs, sources, targets, 0.05, iterations=1, warm=potentials)
    torch.testing.assert_close(again, plan, rtol=1e-6, atol=1e-9)


def test_a_high_temperature_spreads_the_mass() -> None:
    plan, _ = sinkhorn(rand(4, 5), uniform(4), uniform(5), 1e6)
    torch.testing.assert_close(plan, torch.full((4, 5), 1 / 20, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.02, 0.3, 5.0])
def test_the_soft_topk_is_the_plan_to_two_targets(temperature: float) -> None:
    scores, k = rand(9), 4
    costs = torch.stack([scores.square(), (scores - 1).square()], 1)
    targets = torch.tensor([1 - k / 9, k / 9], dtype=torch.float64)
    plan, _ = sinkhorn(costs, uniform(9), targets, temperature, iterations=50_000, tolerance=1e-13)
    soft = soft_topk(scores, k, temperature)
    torch.testing.assert_close(soft, 9 * plan[:, 1], rtol=1e-6, atol=1e-6)
    assert float(soft.sum()) == pytest.approx(k, abs=1e-9)


def test_the_soft_topk_ends_in_the_hard_one_and_in_the_mean() -> None:
    scores = rand(10)
    torch.testing.assert_close(soft_topk(scores, 3, 1e-5), topk_mask(scores, 3).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(soft_topk(scores, 3, 1e6), torch.full_like(scores, 0.3), rtol=0, atol=1e-5)
    assert_same(soft_topk(scores, 10, 0.1), torch.ones_like(scores))
    assert_same(soft_topk(scores, 0, 0.1), torch.zeros_like(scores))
    # Ties share.
    torch.testing.assert_close(soft_topk(torch.zeros(4), 1, 1e-4), torch.full((4,), 0.25))


def test_the_gradient_of_the_soft_topk_is_exact() -> None:
    scores = rand(6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, 2, 0.2), scores)
    single = rand(6).float().requires_grad_()
    soft = soft_topk(single, 2, 1e-6)
    soft.square().sum().backward()
    assert single.grad is not None and bool(torch.isfinite(single.grad).all())


def test_permuting_scores_permutes_the_soft_topk_deterministically() -> None:
    scores = rand(12)
    order = torch.randperm(12, generator=generator())
    soft = assert_deterministic(lambda: soft_topk(scores, 5, 0.1))
    torch.testing.assert_close(soft_topk(scores[order], 5, 0.1), soft[order])


def test_wrong_problems_are_refused() -> None:
    costs = rand(2, 3)
    with pytest.raises(ValueError, match="costs must be"):
        transport(costs, uniform(3), uniform(3))
    with pytest.raises(ValueError, match="sources hold a mass of 1, targets want 2"):
        transport(costs, uniform(2), 2 * uniform(3))
    with pytest.raises(ValueError, match="masses must not be negative"):
        transport(costs, torch.tensor([2.0, -1.0]), uniform(3))
    with pytest.raises(ValueError, match="masses above 0"):
        sinkhorn(costs, torch.tensor([1.0, 0.0]), uniform(3), 1.0)
    with pytest.raises(ValueError, match="costs hold 6 NaN"):
        sinkhorn(costs * torch.nan, uniform(2), uniform(3), 1.0)
    for solve in (lambda: sinkhorn(costs, uniform(2), uniform(3), 0.0), lambda: soft_topk(rand(3), 1, 0.0)):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            solve()
    with pytest.raises(ValueError, match="between 0 and 3"):
        soft_topk(rand(3), 4, 1.0)
    with pytest.raises(ValueError, match="finite"):
        soft_topk(torch.tensor([torch.inf, 0.0]), 1, 1.0)
