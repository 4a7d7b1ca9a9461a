"""Movement against sums of g w that are kept by hand."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.granularity import Block, Granularity, Rows, Unstructured, Weights
from secateur.importance import Magnitude
from secateur.importance.movement import Movement
from secateur.pruning_callback import PruningCallback
from secateur.schedules import Polynomial
from secateur.surgery import Network
from secateur.training import fit
from secateur.units import Member, UnitGroup
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit
from tests.secateur.networks import BATCHES, Regression


class ByHand(lightning.Callback):
    """-sum of g w over the steps."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for name, weight in Weights(pl_module).weights().items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(weight)) - weight.grad * weight.detach()  # type: ignore[operator]


def watched(movement: Movement, steps: int = 12) -> tuple[Regression, dict[str, Tensor]]:
    module, by_hand = Regression(), ByHand()
    fit(module, BATCHES, steps=steps, callbacks=[movement, by_hand])
    return module, by_hand.sums


def test_scores_are_minus_the_sum_of_gradient_times_weight() -> None:
    movement = Movement(rate=0.1)
    module, sums = watched(movement)
    for name, score in movement.score(Weights(module)).items():
        torch.testing.assert_close(score, 0.1 * sums[name].flatten())


@pytest.mark.parametrize("granularity", [Block(2, 4), Block(1, 2), Rows()], ids=repr)
def test_a_blocks_score_is_the_sum_of_its_weights(granularity: Granularity) -> None:
    movement = Movement(granularity)
    module, sums = watched(movement)
    by_block = {f"network.{index}.weight": sums[f"network.{index}.weight"] for index in (0, 2)}
    expected = {}
    for name, total in by_block.items():
        height = granularity.height if isinstance(granularity, Block) else 1
        width = granularity.width if isinstance(granularity, Block) else total.shape[1]
        tiles = total.unfold(0, height, height).unfold(1, width, width)
        expected[name] = tiles.sum(dim=(2, 3)).flatten()
    scores = movement.score(Weights(module, granularity))
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name])


def test_blocks_of_one_are_single_weights() -> None:
    single, block = Movement(Unstructured()), Movement(Block(1, 1))
    watched(single)
    watched(block)
    assert_same(single.scores, block.scores)


def test_units_of_a_network_score_the_sum_over_all_that_they_own() -> None:
    module, by_hand = Regression(), ByHand()
    channels = UnitGroup("hidden", 8, (Member("network.0.weight"), Member("network.2.weight", 1)))
    target = Network(module, [channels])
    movement = Movement(units=target, rate=0.5)
    assert movement.score(target)["hidden"].tolist() == [0.0] * 8
    fit(module, BATCHES, steps=12, callbacks=[movement, by_hand])
    expected = by_hand.sums["network.0.weight"].sum(1) + by_hand.sums["network.2.weight"].sum(0)
    torch.testing.assert_close(movement.score(target)["hidden"], 0.5 * expected)
    with pytest.raises(ValueError, match="Pull trains none of the weights"):
        fit(Pull(), BATCHES, steps=1, callbacks=[Movement(units=target)])


class Pull(lightning.LightningModule):
    """A large weight that is pulled to 0, and a small one that is pushed away from it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[3.0, 0.1]]))

    def training_step(self, batch: Any, step: int) -> Tensor:
        return (self.weight - torch.tensor([[0.0, 2.0]])).square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


def test_what_is_pulled_to_zero_scores_less_than_what_is_pushed_away() -> None:
    movement, module = Movement(), Pull()
    fit(module, BATCHES, steps=10, callbacks=[movement])
    target = Weights(module)
    moved, magnitude = movement.score(target)["weight"], Magnitude().score(target)["weight"]
    assert float(moved[0]) < 0 < float(moved[1])
    assert float(magnitude[0]) > float(magnitude[1])
    assert movement.above(0.5)["weight"].tolist() == [False, True]


def test_the_penalty_pulls_scores_down_as_the_gradient_of_the_sigmoid() -> None:
    soft = Movement(rate=0.5, penalty=0.2)
    target = Weights({"w": torch.zeros(2, 2)})
    expected = torch.zeros(4, dtype=torch.float32, requires_grad=True)
    for _ in range(3):
        soft.accumulate(target, {"w": torch.ones(2, 2)})
        (slope,) = torch.autograd.grad(0.2 * torch.sigmoid(expected).sum(), expected)
        expected = (expected - 0.5 * slope).detach().requires_grad_(True)
    torch.testing.assert_close(soft.scores["w"], expected.detach())


def test_no_penalty_changes_nothing() -> None:
    hard, soft = Movement(), Movement(penalty=0.0)
    assert_same(watched(hard)[0].state_dict(), watched(soft)[0].state_dict())
    assert_same(hard.scores, soft.scores)


def test_the_contracts_of_criteria() -> None:
    def scores() -> Any:
        movement = Movement()
        module, _ = watched(movement)
        return movement.score(Weights(module))

    assert_scores_fit(assert_deterministic(scores), Weights(Regression()).groups())

    def of(gradients: Tensor) -> Any:
        movement = Movement(Rows())
        target = Weights({"w": torch.arange(1.0, 13.0).reshape(4, 3)[gradients[:, 0].long()]}, Rows())
        movement.accumulate(target, {"w": gradients})
        return movement.score(target)

    assert_permutes(of, torch.arange(4.0)[:, None].expand(4, 3), lambda t, order: t[order], "w")


def test_before_the_first_step_nothing_has_moved() -> None:
    assert all(not score.any() for score in Movement().score(Weights(Regression())).values())


def test_other_weights_than_those_that_were_watched_are_refused() -> None:
    movement = Movement()
    module, _ = watched(movement)
    with pytest.raises(ValueError, match=r"'network.0.weight' of 8 units was not watched"):
        movement.score(Weights(module, Rows()))
    for options in ({"rate": 0.0}, {"penalty": -1.0}):
        with pytest.raises(ValueError, match="rate > 0"):
            Movement(**options)


def test_prunes_in_front_of_the_pruning_callback() -> None:
    movement, module = Movement(), Regression()
    pruning = PruningCallback(movement, Polynomial(), Budget(share=0.25), first_step=4, last_step=16, every=3)
    fit(module, BATCHES, steps=20, callbacks=[movement, pruning])
    assert sum(int((w != 0).sum()) for w in Weights(module).weights().values()) == 12


def test_scores_are_part_of_the_checkpoint() -> None:
    movement, again = Movement(), Movement()
    module, _ = watched(movement)
    again.load_state_dict(movement.state_dict())
    assert_same(again.score(Weights(module)), movement.score(Weights(module)))
