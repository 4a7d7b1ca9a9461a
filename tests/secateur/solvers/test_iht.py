"""Hard thresholding against brute force over supports, and the low-rank algebra against the dense."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import Tensor

from secateur.solvers.iht import AroundWeights, HardThresholding, LeastSquares, Quadratic, hard_threshold
from secateur.solvers.obs import removal_losses
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import generator, random_quadratic


def least_squares(n: int, p: int, ridge: float, seed: int = 0, dtype: torch.dtype = torch.float64) -> LeastSquares:
    rows = torch.randn(n, p, generator=generator(seed), dtype=torch.float64)
    centre = torch.randn(p, generator=generator(seed + 50), dtype=torch.float64)
    return LeastSquares(rows.to(dtype), (rows @ centre).to(dtype), centre.to(dtype), ridge)


def dense(problem: LeastSquares) -> Tensor:
    return problem.rows.T @ problem.rows + problem.ridge * torch.eye(len(problem.centre)).to(problem.rows)


def brute_force(problem: Quadratic, p: int, k: int) -> float:
    best = torch.inf
    for support in combinations(range(p), k):
        w = torch.zeros(p, dtype=torch.float64)
        w[list(support)] = problem.solve(torch.tensor(support))
        best = min(best, problem.value(w))
    return best


@pytest.mark.parametrize("support", [[0, 3], [0, 1, 2, 4, 5, 6, 7]])
def test_low_rank_algebra_equals_dense(support: list[int]) -> None:
    problem = least_squares(4, 8, 0.3)
    twin = AroundWeights(dense(problem), problem.centre)
    w = torch.randn(8, generator=generator(9), dtype=torch.float64)
    assert problem.value(w) == pytest.approx(twin.value(w))
    torch.testing.assert_close(problem.gradient(w), twin.gradient(w))
    torch.testing.assert_close(problem.product(w), twin.product(w))
    torch.testing.assert_close(
        problem.inverse_diagonal(torch.tensor(support)), twin.inverse_diagonal(torch.tensor(support))
    )
    torch.testing.assert_close(problem.solve(torch.tensor(support)), twin.solve(torch.tensor(support)))


@pytest.mark.parametrize("k", [2, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_within_one_percent_of_brute_force(k: int, seed: int) -> None:
    problem = least_squares(30, 10, 0.05, seed)
    found = HardThresholding().minimise(problem, problem.centre, k)
    assert int((found != 0).sum()) <= k
    assert problem.value(found) <= 1.01 * brute_force(problem, 10, k) + 1e-9


def test_one_removal_costs_what_the_surgeon_says() -> None:
    problem = least_squares(5, 9, 0.2)
    found = HardThresholding().minimise(problem, problem.centre, 8)
    assert problem.value(found) == pytest.approx(float(removal_losses(problem.centre[None], dense(problem)).min()))


def test_the_objective_never_rises() -> None:
    problem = least_squares(20, 60, 0.01, seed=2)
    solver = HardThresholding()
    solver.minimise(problem, problem.centre, 15)
    assert len(solver.objectives) > 1
    assert all(later <= earlier for earlier, later in pairwise(solver.objectives))


def test_a_large_ridge_leaves_the_largest_weights() -> None:
    problem = least_squares(6, 20, 1e7)
    found = HardThresholding().minimise(problem, problem.centre, 7)
    torch.testing.assert_close(found, hard_threshold(problem.centre, 7), rtol=1e-4, atol=1e-6)


def test_a_planted_sparse_vector_is_found_exactly() -> None:
    rows = torch.randn(60, 80, generator=generator(1), dtype=torch.float64)
    planted = torch.zeros(80, dtype=torch.float64)
    planted[::10] = 1 + torch.rand(8, generator=generator(2), dtype=torch.float64)
    problem = LeastSquares(rows, rows @ planted, torch.zeros(80, dtype=torch.float64), 1e-8)
    noisy = planted + 0.3 * torch.randn(80, generator=generator(3), dtype=torch.float64)
    torch.testing.assert_close(HardThresholding().minimise(problem, noisy, 8), planted, rtol=1e-6, atol=1e-6)


def test_keeping_all_or_nothing() -> None:
    problem = least_squares(4, 6, 0.1)
    torch.testing.assert_close(HardThresholding().minimise(problem, problem.centre, 6), problem.centre)
    assert not HardThresholding().minimise(problem, problem.centre, 0).any()


def test_float32_agrees_with_float64_at_a_small_ridge() -> None:
    exact, single = (least_squares(12, 40, 1e-4, dtype=dtype) for dtype in (torch.float64, torch.float32))
    support = torch.arange(0, 40, 2)
    torch.testing.assert_close(single.solve(support).double(), exact.solve(support), rtol=1e-3, atol=1e-3)
    values = [problem.value(HardThresholding().minimise(problem, problem.centre, 20)) for problem in (exact, single)]
    assert values[1] <= 1.05 * values[0] + 1e-5


def test_permuting_the_entries_permutes_the_result() -> None:
    problem = least_squares(8, 12, 0.1)
    order = torch.randperm(12, generator=generator())
    permuted = LeastSquares(problem.rows[:, order], problem.targets, problem.centre[order], problem.ridge)
    found = HardThresholding().minimise(problem, problem.centre, 5)
    torch.testing.assert_close(HardThresholding().minimise(permuted, permuted.centre, 5), found[order])


def test_a_dense_problem_is_minimised_too_and_deterministically() -> None:
    hessian, centre = random_quadratic(9, seed=4)
    problem = AroundWeights(hessian, centre)
    found = assert_deterministic(lambda: HardThresholding().minimise(problem, centre, 4))
    assert problem.value(found) <= 1.01 * brute_force(problem, 9, 4)
    assert_same(centre, random_quadratic(9, seed=4)[1])


def test_wrong_problems_are_refused() -> None:
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="ridge must be above 0"):
        LeastSquares(torch.ones(2, 3), torch.ones(2), ones, 0.0)
    with pytest.raises(ValueError, match="rows must be"):
        LeastSquares(torch.ones(2, 3), torch.ones(3), ones, 1.0)
    with pytest.raises(ValueError, match="rows hold 6 values"):
        LeastSquares(torch.full((2, 3), torch.nan), torch.ones(2), ones, 1.0)
    problem = LeastSquares(torch.ones(2, 3), torch.ones(2), ones, 1.0)
    with pytest.raises(ValueError, match="between 0 and 3"):
        HardThresholding().minimise(problem, ones, 4)
    with pytest.raises(ValueError, match="1 NaN"):
        HardThresholding().minimise(problem, torch.tensor([torch.nan, 1, 1]), 2)
