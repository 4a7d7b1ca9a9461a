"""Surgery against brute force and dense algebra."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from secateur.solvers.obs import (
    cholesky,
    inverse_factor,
    quadratic_loss,
    refit,
    removal_losses,
    surgeon,
    sweep,
)
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import generator, random_quadratic


def problem(rows: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    weight = torch.randn(rows, d, generator=generator(seed), dtype=torch.float64)
    return weight, random_quadratic(d, seed)[0]


def fixed(keep: Tensor):
    return lambda scores, start: keep[:, start : start + scores.shape[1]]


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    _, hessian = problem(1, 9)
    dense = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    torch.testing.assert_close(inverse_factor(hessian), dense)


def test_an_ill_conditioned_float32_hessian_has_a_factor() -> None:
    points = torch.randn(60, 4, generator=generator()) @ torch.randn(4, 40, generator=generator(1))
    hessian = points.T @ points / 60
    hessian.diagonal().add_(1e-4 * hessian.diagonal().mean())
    factor = inverse_factor(hessian).double()
    residual = factor @ hessian.double() @ factor.T - torch.eye(40, dtype=torch.float64)
    assert float(residual.abs().max()) < 0.05


def test_a_matrix_that_has_no_factor_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        cholesky(-torch.eye(3))
    with pytest.raises(ValueError, match="NaN"):
        cholesky(torch.full((2, 2), torch.nan))
    # Indefinite by rounding only: a little on the diagonal mends it.
    cholesky(torch.ones(3, 3))


def test_removing_one_weight_costs_what_the_surgeon_says() -> None:
    weight, hessian = problem(2, 6)
    losses = removal_losses(weight, hessian)
    for column in range(6):
        keep = torch.ones_like(weight, dtype=torch.bool)
        keep[:, column] = False
        refitted = refit(weight, hessian, keep)
        cost = sum(quadratic_loss(refitted[[row]] - weight[[row]], hessian) for row in range(2))
        assert cost == pytest.approx(float(losses[:, column].sum()))


def test_refit_is_least_squares_on_the_kept_columns() -> None:
    inputs = torch.randn(40, 7, generator=generator(3), dtype=torch.float64)
    weight = torch.randn(5, 7, generator=generator(4), dtype=torch.float64)
    keep = torch.rand(5, 7, generator=generator(5)) < 0.6
    refitted = refit(weight, inputs.T @ inputs / 40, keep)
    for row in range(5):
        columns = inputs[:, keep[row]]
        solution = torch.linalg.lstsq(columns, inputs @ weight[row]).solution
        torch.testing.assert_close(refitted[row, keep[row]], solution)
        assert not refitted[row, ~keep[row]].any()


def test_refit_of_a_full_mask_changes_nothing() -> None:
    weight, hessian = problem(3, 5)
    assert_same(weight, refit(weight, hessian, torch.ones(3, 5, dtype=torch.bool)))
    assert not refit(weight, hessian, torch.zeros(3, 5, dtype=torch.bool)).any()


def test_the_surgeon_is_optimal_for_one_removal_and_near_brute_force_for_more() -> None:
    for seed in range(4):
        weight, hessian = problem(1, 8, seed)
        for kept in (7, 4):
            updated, keep = surgeon(weight, hessian, kept)
            assert int(keep.sum()) == kept and not updated[~keep].any()
            torch.testing.assert_close(updated, refit(weight, hessian, keep))
            best = min(_loss_of(weight, hessian, support) for support in combinations(range(8), kept))
            found = quadratic_loss(updated - weight, hessian)
            assert found == pytest.approx(best) if kept == 7 else found <= 1.3 * best


def _loss_of(weight: Tensor, hessian: Tensor, support: tuple[int, ...]) -> float:
    keep = torch.zeros_like(weight, dtype=torch.bool)
    keep[:, list(support)] = True
    return quadratic_loss(refit(weight, hessian, keep) - weight, hessian)


def test_the_sweep_equals_column_by_column_recomputation_with_dense_inverses() -> None:
    weight, hessian = problem(3, 10)
    keep = torch.rand(3, 10, generator=generator(7)) < 0.5
    swept, mask, loss = sweep(weight, inverse_factor(hessian), fixed(keep), span=2, block=4)
    dense = weight.clone()
    for column in range(10):
        inverse = torch.linalg.inv(hessian[column:, column:])
        error = torch.where(keep[:, column], 0, dense[:, column]) / inverse[0, 0]
        dense[:, column:] -= error[:, None] * inverse[0]
    torch.testing.assert_close(swept, torch.where(keep, dense, 0))
    assert_same(mask, keep)
    assert loss == pytest.approx(quadratic_loss(swept - weight, hessian))


@pytest.mark.parametrize("block", [1, 3, 16, 64])
def test_the_sweep_does_not_depend_on_its_block(block: int) -> None:
    weight, hessian = problem(4, 11)
    keep = torch.rand(4, 11, generator=generator(2)) < 0.4
    factor = inverse_factor(hessian)
    reference = sweep(weight, factor, fixed(keep), span=1)[0]
    torch.testing.assert_close(sweep(weight, factor, fixed(keep), span=1, block=block)[0], reference)


def test_scores_of_columns_that_go_together_are_what_removing_them_costs() -> None:
    weight, hessian = problem(4, 6)
    factor = inverse_factor(hessian)
    seen = []

    def choose(scores: Tensor, start: int) -> Tensor:
        seen.append(scores)
        return torch.full_like(scores, start > 0, dtype=torch.bool)

    loss = sweep(weight, factor, choose, span=3, together=3)[2]
    assert loss == pytest.approx(0.5 * float(seen[0].sum()))


def test_the_sweep_lies_between_no_update_and_the_exact_refit() -> None:
    weight, hessian = problem(6, 12)
    keep = torch.rand(6, 12, generator=generator(9)) < 0.5
    loss = sweep(weight, inverse_factor(hessian), fixed(keep), span=4)[2]
    masked = quadratic_loss(torch.where(keep, weight, 0) - weight, hessian)
    assert quadratic_loss(refit(weight, hessian, keep) - weight, hessian) <= loss <= masked


def test_keeping_everything_changes_nothing() -> None:
    weight, hessian = problem(3, 6)
    everything = torch.ones(3, 6, dtype=torch.bool)
    assert_same(sweep(weight, inverse_factor(hessian), fixed(everything), span=2)[0], weight)
    assert_same(surgeon(weight, hessian, 6)[0], weight)


def test_solvers_are_deterministic_and_refuse_nan() -> None:
    weight, hessian = problem(2, 6)
    assert_deterministic(lambda: surgeon(weight, hessian, 3))
    weight[0, 0] = torch.nan
    everything = torch.ones(2, 6, dtype=torch.bool)
    for solve in (
        lambda: refit(weight, hessian, everything),
        lambda: surgeon(weight, hessian, 3),
        lambda: sweep(weight, inverse_factor(hessian), fixed(everything), span=2),
    ):
        with pytest.raises(ValueError, match="1 NaN"):
            solve()
