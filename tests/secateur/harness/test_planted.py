"""Planted tickets are what they say, and criteria find of them what their theory promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.harness.planted import Planted, compare, plant, planted_regression, seek
from secateur.harness.tickets import Ticket, circle_ticket, helix_ticket, random_ticket, relu_ticket
from secateur.importance import Fisher, Magnitude, Random, Taylor, Wanda
from secateur.units import Scores
from tests.contracts import assert_deterministic

PLANTED = {
    "relu": (relu_ticket(3), (1, 12, 12, 1)),
    "circle": (circle_ticket(), (2, 30, 1)),
    "helix": (helix_ticket(), (1, 30, 3)),
    "random": (random_ticket((4, 5, 4, 2), seed=3), (4, 20, 20, 2)),
}


@dataclass(frozen=True, eq=False)
class Oracle:
    """Knows the answer."""

    def score(self, target: Any, calibration: Any = None) -> Scores:
        return {name: mask.double() for name, mask in calibration.keep.items()}


@pytest.mark.parametrize("name", PLANTED)
def test_a_network_under_the_tickets_mask_is_the_tickets_function(name: str) -> None:
    ticket, widths = PLANTED[name]
    problem = plant(ticket, widths, seed=1)
    assert problem.planted == len(ticket)
    target = problem.target()
    with torch.no_grad(), target.masked(dict(problem.keep)):
        expected = problem.scale * ticket(problem.inputs)
        torch.testing.assert_close(target(problem.inputs), expected, rtol=1e-9, atol=1e-9)
    dense = {key: torch.ones_like(mask) for key, mask in problem.keep.items()}
    assert problem.loss(problem.keep) < 1e-18 < 1e-3 < problem.loss(dense)


@pytest.mark.parametrize("name", PLANTED)
def test_the_oracle_finds_everything_and_chance_finds_the_density(name: str) -> None:
    ticket, widths = PLANTED[name]

    def make(seed: int) -> Planted:
        return plant(ticket, widths, seed)

    perfect = seek(Oracle(), make, range(2))
    assert perfect.recall == perfect.precision == 1
    assert all(one.loss == one.ticket_loss and set(one.by_group.values()) == {1.0} for one in perfect.found)
    recalls = [seek(Random(seed), make, [seed]).recall for seed in range(30)]
    assert sum(recalls) / 30 == pytest.approx(perfect.density, abs=4 * (0.25 / (30 * len(ticket))) ** 0.5)


def test_what_is_planted_has_the_size_of_what_is_random() -> None:
    problem = plant(random_ticket((4, 5, 4, 2), seed=3), (4, 20, 20, 2))
    for name in ("0.weight", "2.weight", "4.weight"):
        weight = dict(problem.network.named_parameters())[name].detach().flatten()
        inputs = 4 if name == "0.weight" else 20
        assert float(weight[problem.keep[name]].square().mean()) == pytest.approx(2 / inputs)


def test_tickets_are_the_functions_that_they_are_named_for() -> None:
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    torch.testing.assert_close(relu_ticket(4)(x), x.relu())
    grid = torch.cartesian_prod(x[:, 0], x[:, 0])
    exact = grid.square().sum(dim=1, keepdim=True) - 0.49
    # Linear interpolation of x^2 over pieces of 1 / 5 is at most 1 / 100 above it.
    assert float((circle_ticket(0.7, pieces=5)(grid) - exact).abs().max()) <= 2 * 0.01 + 1e-12
    place = torch.linspace(0, 1, 13, dtype=torch.float64)[:, None]
    points = helix_ticket(12)(place)
    torch.testing.assert_close(points[:, 2:], place)
    torch.testing.assert_close(points[:, :2].norm(dim=1), 0.5 + 0.5 * place[:, 0])
    # 12 weights in, 12 out for each of two coordinates, and one for the height, which never bends.
    assert len(helix_ticket(12)) == 12 + 24 + 1


def test_least_squares_of_even_features_show_the_support_to_every_criterion() -> None:
    for criterion in (Magnitude(), Wanda()):
        assert seek(criterion, lambda seed: planted_regression(seed=seed), range(3)).recall == 1


def test_with_features_of_uneven_sizes_the_data_tells_what_magnitude_cannot() -> None:
    def make(seed: int) -> Planted:
        return planted_regression(spread=20.0, noise=0.5, correlation=0.2, seed=seed)

    by_size, by_data = seek(Magnitude(), make, range(5)), seek(Wanda(), make, range(5))
    assert by_data.recall == 1
    assert by_size.recall < 0.7
    by_loss = [one.loss - one.ticket_loss for one in by_size.found]
    assert min(by_loss) > 0


def test_gradient_criteria_take_the_problem_as_their_calibration() -> None:
    def make(seed: int) -> Planted:
        return plant(random_ticket((4, 5, 2), seed=seed), (4, 20, 2), seed)

    for criterion in (Taylor(), Fisher()):
        hunt = seek(criterion, make, range(2))
        assert 0 <= hunt.recall == hunt.precision <= 1


def test_training_comes_before_scoring_and_more_weights_raise_recall() -> None:
    def grow_the_ticket(problem: Planted) -> None:
        with torch.no_grad():
            for name, parameter in problem.network.named_parameters():
                if name in problem.keep:
                    parameter.view(-1)[problem.keep[name]] *= 100

    def make(seed: int) -> Planted:
        return plant(circle_ticket(), (2, 30, 1), seed)

    assert seek(Magnitude(), make, range(2), train=grow_the_ticket).recall == 1
    once, twice = (seek(Magnitude(), make, range(3), times=times) for times in (1.0, 2.0))
    assert once.recall <= twice.recall
    (first, *_) = twice.found
    assert first.kept == 2 * first.planted and first.precision == pytest.approx(first.recall / 2)


def test_layers_that_are_known_leave_only_the_choice_within_them() -> None:
    ticket, widths = PLANTED["random"]
    hunt = seek(Random(), lambda seed: plant(ticket, widths, seed), [0], per_layer=True)
    assert hunt.found[0].kept == len(ticket)
    problem = plant(ticket, widths)
    kept = compare({name: torch.ones_like(mask) for name, mask in problem.keep.items()}, problem)
    assert kept.recall == 1 and kept.precision == problem.density


def test_the_same_seed_plants_the_same_and_touches_no_global_random_state() -> None:
    def made() -> list[Tensor]:
        problem = plant(random_ticket((3, 4, 2), seed=2), (3, 9, 2), seed=5)
        linear = planted_regression(20, 3, 50, seed=5)
        return [*(p.detach() for one in (problem, linear) for p in (*one.network.parameters(), one.inputs))]

    assert_deterministic(made)


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit into"):
        plant(helix_ticket(12), (1, 11, 3))
    with pytest.raises(ValueError, match="as many layers"):
        plant(relu_ticket(2), (1, 4, 4, 1))
    with pytest.raises(ValueError, match="neuron 1 of layer 0 has no weights"):
        Ticket((torch.eye(2), torch.tensor([[1.0, 0.0]])), (torch.zeros(2), torch.zeros(1)))
    with pytest.raises(ValueError, match="support <= features"):
        planted_regression(5, 6, 50)
    with pytest.raises(ValueError, match="no seeds"):
        seek(Magnitude(), lambda seed: planted_regression(seed=seed), [])
    with pytest.raises(ValueError, match="no weight is kept"):
        seek(Magnitude(), lambda seed: planted_regression(seed=seed), [0], times=0.1)
