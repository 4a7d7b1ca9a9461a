"""Scores from forward passes against exact changes and additive utilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.importance import Ablation, Bonsai, Magnitude
from secateur.importance.perturbation import mean_loss, measure_removals, output_shift, ridge_regression
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit
from tests.secateur.toys import LossOf, Perceptron, Weights, generator, regression, removal_changes

DATA = regression(samples=48, size=24)


def perceptron(hidden: int = 7) -> Perceptron:
    return Perceptron.random(5, hidden, 2, seed=3)


class Worths:
    """A utility to which each unit adds what it is worth."""

    def __init__(self, worths: Tensor) -> None:
        self.worths = worths
        self.graphs: list[bool] = []

    def losses(self, target: Weights) -> Any:
        loss = 3.0 - (target.effective() * self.worths).sum()
        self.graphs.append(loss.requires_grad)
        yield loss


def test_ablation_is_the_exact_change_of_the_loss() -> None:
    target = perceptron()
    scores = Ablation().score(target, DATA)
    torch.testing.assert_close(scores["layer.hidden"], removal_changes(target, DATA))


def test_a_unit_that_nothing_reads_scores_0() -> None:
    target = perceptron()
    target.second[:, 2] = 0
    scores = Ablation().score(target, DATA)["layer.hidden"]
    assert float(scores[2]) == 0 and int(scores.abs().argmin()) == 2


@pytest.mark.parametrize(
    "criterion", [Ablation(), Bonsai(20), Bonsai(8, prior=Magnitude(), antithetic=False)], ids=repr
)
def test_criteria_fit_are_deterministic_and_change_nothing(criterion: Any) -> None:
    target = perceptron()
    before = {name: tensor.clone() for name, tensor in target.tensors().items()}
    assert_scores_fit(assert_deterministic(lambda: criterion.score(target, DATA)), target.groups())
    assert_same(before, dict(target.tensors()))
    assert target.mask is None


def test_ablation_permutes_with_the_units() -> None:
    assert_permutes(lambda each: Ablation().score(each, DATA), perceptron(), Perceptron.permuted, "layer.hidden", 1e-9)


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_bonsai_recovers_an_additive_utility_without_a_graph(share: float) -> None:
    worths = torch.randn(12, generator=generator(2), dtype=torch.float64)
    objective = Worths(worths)
    scores = Bonsai(pairs=12, share=share, ridge=0.0).score(Weights(torch.ones(12).double()), objective)
    torch.testing.assert_close(scores["blocks"], worths, rtol=0, atol=1e-4)
    assert not any(objective.graphs)


def test_bonsai_with_fewer_samples_than_units_still_ranks_what_matters_first() -> None:
    worths = torch.zeros(40, dtype=torch.float64)
    worths[[3, 17]] = 5.0
    scores = Bonsai(pairs=15).score(Weights(torch.ones(40).double()), Worths(worths))["blocks"]
    assert set(scores.topk(2).indices.tolist()) == {3, 17}


def test_complements_lower_the_variance_of_what_bonsai_finds() -> None:
    target, spread = perceptron(10), {}
    for antithetic in (True, False):
        runs = [Bonsai(8, antithetic=antithetic, seed=seed).score(target, DATA)["layer.hidden"] for seed in range(12)]
        spread[antithetic] = float(torch.stack(runs).var(0).mean())
    assert spread[True] <= spread[False]


def test_a_prior_of_0_is_only_met_in_complements() -> None:
    target = Weights(torch.tensor([1.0, 1.0, 1.0, 0.0]).double())
    seen = list(Bonsai(5, share=0.5, prior=Magnitude())._drawn(target, None))
    assert all(float(alpha[3]) == 0 for alpha in seen[1::2]) and all(float(alpha[3]) == 1 for alpha in seen[2::2])
    with pytest.raises(ValueError, match="only 3 of 4 have a positive probability"):
        Bonsai(2, share=0.99, prior=Magnitude()).score(target, Worths(torch.ones(4)))


def test_ridge_regression_is_the_normal_equations_whatever_the_shape() -> None:
    for count, units in ((20, 6), (5, 9)):
        samples = torch.randn(count, units, generator=generator(1), dtype=torch.float64)
        values = torch.randn(count, generator=generator(2), dtype=torch.float64)
        centred = samples - samples.mean(0)
        normal = centred.T @ centred + 0.3 * count * torch.eye(units, dtype=torch.float64)
        expected = torch.linalg.solve(normal, centred.T @ (values - values.mean()))
        torch.testing.assert_close(ridge_regression(samples, values, 0.3), expected)


def test_output_shift_is_0_for_the_same_outputs_in_any_order_and_sees_a_removal() -> None:
    target = perceptron()
    target.second[:, 4] = 0
    with torch.no_grad():
        dense = target(DATA.inputs)
    assert output_shift(dense, dense) == 0
    assert output_shift(dense, dense.flip(0)) == pytest.approx(0, abs=1e-12)
    assert output_shift(dense, dense + 1) == pytest.approx(2**0.5)
    runs = []

    def shift(each: Perceptron) -> float:
        runs.append(1)
        return output_shift(dense, each(DATA.inputs))

    shifts = measure_removals(target, shift)["layer.hidden"]
    assert int(shifts.argmin()) == 4 and float(shifts[4]) == 0
    assert len(runs) == 7, "one run a unit"
    with pytest.raises(ValueError, match="two samples"):
        output_shift(dense[:1], dense[:1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ablation().score(perceptron()), "needs an Objective"),
        (lambda: Bonsai(pairs=0), "pairs >= 1"),
        (lambda: Bonsai(share=1.0), "share between"),
        (lambda: mean_loss(perceptron(), LossOf(())), "no losses"),
        (lambda: mean_loss(perceptron(), LossOf((lambda _: torch.tensor(float("nan")),))), "batch 0 must be finite"),
    ],
)
def test_bad_input_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
