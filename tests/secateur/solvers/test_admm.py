"""Projections, and splitting against convex optima and brute force."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from secateur.solvers.admm import Split, minimise_quadratic, onto_l1_ball, onto_largest, soft_threshold
from secateur.solvers.iht import AroundWeights
from tests.contracts import assert_deterministic
from tests.secateur.solvers.test_iht import brute_force
from tests.secateur.toys import generator, random_quadratic


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("radius", [0.1, 1.0, 3.0])
def test_the_l1_projection_is_the_nearest_point(radius: float) -> None:
    x = randn(6)
    projected = onto_l1_ball(radius)(x)
    assert float(projected.abs().sum()) == pytest.approx(radius)
    for seed in range(50):
        other = randn(6, seed=seed + 1)
        other = other / other.abs().sum() * radius
        assert (x - projected).norm() <= (x - other).norm()
    inside = x / x.abs().sum() * radius / 2
    torch.testing.assert_close(onto_l1_ball(radius)(inside), inside, rtol=0, atol=0)


def test_projections_keep_what_they_should() -> None:
    x = torch.tensor([[3.0, -1.0], [0.5, -4.0]])
    torch.testing.assert_close(onto_largest(2)(x), torch.tensor([[3.0, 0.0], [0.0, -4.0]]))
    torch.testing.assert_close(soft_threshold(x, 1.0), torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
    with pytest.raises(ValueError, match="radius must be above 0"):
        onto_l1_ball(0)


def test_a_quadratic_over_the_l1_ball_reaches_the_convex_optimum() -> None:
    hessian, linear = random_quadratic(6)

    def objective(parts) -> float:
        x = torch.from_numpy(parts[:6] - parts[6:])
        return float(0.5 * x @ hessian @ x - linear @ x)

    # The ball as a simplex of positive and negative parts.
    reference = minimize(
        objective,
        torch.full((12,), 0.05).double().numpy(),
        bounds=[(0, None)] * 12,
        constraints={"type": "ineq", "fun": lambda parts: 0.8 - parts.sum()},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    z = minimise_quadratic(hessian, linear[None], onto_l1_ball(0.8))[0]
    assert float(z.abs().sum()) <= 0.8 + 1e-9
    assert float(0.5 * z @ hessian @ z - linear @ z) == pytest.approx(reference.fun, rel=1e-6)


def test_without_a_constraint_it_solves_the_system() -> None:
    hessian, linear = random_quadratic(7, seed=2)
    z = minimise_quadratic(hessian, linear[None], lambda x: x)[0]
    torch.testing.assert_close(hessian @ z, linear, rtol=1e-4, atol=1e-4)


def test_the_support_of_a_sparse_quadratic_is_nearly_the_best_once_it_is_solved_again() -> None:
    for seed in range(4):
        hessian, centre = random_quadratic(8, seed)
        problem = AroundWeights(hessian, centre)
        z = minimise_quadratic(hessian, (hessian @ centre)[None], onto_largest(4))[0]
        assert int((z != 0).sum()) == 4
        support = z.nonzero()[:, 0]
        solved = torch.zeros_like(z)
        solved[support] = problem.solve(support)
        assert problem.value(solved) <= 1.1 * brute_force(problem, 8, 4)


def test_splitting_around_an_optimiser_converges_to_the_sparse_set() -> None:
    target = randn(20, seed=3)
    x = target.clone().requires_grad_()
    split = Split(x, onto_largest(5), rho=0.5)
    for _ in range(60):
        optimizer = torch.optim.SGD([x], lr=1 / (1 + split.rho))
        optimizer.zero_grad()
        (0.5 * (x - target).square().sum() + split.penalty(x)).backward()
        optimizer.step()
        residuals = split.dual_step(x)
    assert residuals.primal < 1e-4 and residuals.dual < 1e-4
    assert int((split.z != 0).sum()) == 5
    torch.testing.assert_close(split.z, onto_largest(5)(target), rtol=1e-3, atol=1e-3)


def test_rescaling_rho_keeps_the_multiplier() -> None:
    split = Split(randn(4), onto_largest(2), rho=1.0)
    split.dual_step(randn(4, seed=1))
    multiplier = split.rho * split.u
    split.rescale(4.0)
    torch.testing.assert_close(split.rho * split.u, multiplier)


def test_the_full_set_changes_nothing() -> None:
    x = randn(9)
    split = Split(x, onto_largest(9), rho=1.0)
    assert float(split.penalty(x)) == 0
    assert split.dual_step(x).primal == 0


def test_wrong_input_is_refused_and_runs_are_deterministic() -> None:
    hessian, linear = random_quadratic(5)
    assert_deterministic(lambda: minimise_quadratic(hessian, linear[None], onto_largest(2), iterations=20))
    with pytest.raises(ValueError, match="rho must be above 0"):
        Split(linear, onto_largest(2), rho=0.0)
    with pytest.raises(ValueError, match="5 NaN"):
        minimise_quadratic(hessian, torch.full((1, 5), torch.nan), onto_largest(2))
    with pytest.raises(ValueError, match="1 NaN"):
        Split(linear, onto_largest(2), rho=1.0).dual_step(torch.tensor([torch.nan, 0, 0, 0, 0]))
