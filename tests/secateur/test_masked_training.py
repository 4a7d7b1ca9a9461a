"""Training behind masks: what fades out, what comes back, and what is left in the end."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.granularity import Block, Granularity, Unstructured, Weights
from secateur.masked_training import MovementPruning, SoftMovementPruning, StochasticAnnealing
from secateur.pruning_callback import PruningCallback
from secateur.schedules import Cosine, OneShot, Polynomial
from secateur.training import fit
from tests.contracts import assert_same
from tests.secateur.networks import BATCHES, Regression, some_masks, trained
from tests.secateur.toys import generator

QUARTER = Budget(share=0.25)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_annealing_from_zero_is_an_ordinary_masked_fine_tune(optimizer: type[torch.optim.Optimizer]) -> None:
    keep = some_masks()
    ordinary, _ = trained(PruningCallback.fixed(keep), optimizer=optimizer)
    annealed, _ = trained(StochasticAnnealing(keep, last_step=10, start=0.0), optimizer=optimizer)
    assert_same(dict(ordinary.state_dict()), dict(annealed.state_dict()))
    assert_same({n: (t != 0) for n, t in Weights(annealed).tensors().items()}, dict(keep))


def test_annealing_ends_in_its_mask_and_uses_more_on_the_way() -> None:
    keep = some_masks()
    module, _ = trained(StochasticAnnealing(keep, last_step=10, start=0.9, fade=Cosine()))
    assert_same({n: (t != 0) for n, t in Weights(module).tensors().items()}, dict(keep))
    other, _ = trained(PruningCallback.fixed(keep))
    assert not torch.equal(module.network[0].weight, other.network[0].weight)  # type: ignore[union-attr,arg-type]


def test_removed_weights_act_with_the_probability_of_the_step() -> None:
    keep = {"a": torch.rand(20_000, generator=generator()) < 0.3}
    annealing = StochasticAnnealing(keep, last_step=10, start=0.8)
    for step, chance in [(0, 0.8), (5, 0.4), (9, 0.08), (10, 0.0), (50, 0.0)]:
        annealing.step = step
        drawn = annealing.draw()["a"]
        assert annealing.probability() == pytest.approx(chance)
        assert bool(drawn[keep["a"]].all())
        removed = drawn[~keep["a"]].double()
        assert abs(float(removed.mean()) - chance) <= 3 * (chance * (1 - chance) / len(removed)) ** 0.5
        assert_same(drawn, annealing.draw()["a"])


class ByHand(lightning.Callback):
    """In front of the callback under test: S -= g W, from gradients before they are masked, and dense weights."""

    def __init__(self, callback: MovementPruning) -> None:
        self.callback = callback
        self.scores: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for name, weight in Weights(pl_module).weights().items():
            moved = -weight.grad * self.callback.values()[name]  # type: ignore[operator]
            self.scores[name] = self.scores.get(name, torch.zeros_like(moved)) + moved


class Behind(lightning.Callback):
    """Behind it: W' = W * M while a step is computed; what is removed rests, and may return."""

    def __init__(self, callback: MovementPruning) -> None:
        self.callback = callback
        self.ever_removed: dict[str, Tensor] = {}
        self.returned = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.dense = {name: value.clone() for name, value in self.callback.values().items()}
        self.masks = {name: mask.clone() for name, mask in self.callback.keep.items()}
        for name, weight in Weights(pl_module).weights().items():
            mask = self.masks[name].view(weight.shape)
            assert_same(weight.detach(), self.dense[name].masked_fill(~mask, 0))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, weight in Weights(pl_module).weights().items():
            removed = ~self.masks[name]
            assert_same(weight.detach().flatten()[removed], self.dense[name].flatten()[removed])
            before = self.ever_removed.get(name, torch.zeros_like(removed))
            self.returned += int((before & ~removed).sum())
            self.ever_removed[name] = before | removed


def test_movement_pruning_is_its_formulas() -> None:
    callback = MovementPruning(Polynomial(), QUARTER, last_step=14, first_step=2)
    by_hand, behind = ByHand(callback), Behind(callback)
    module = Regression(rate=0.1, optimizer=torch.optim.SGD)
    fit(module, BATCHES, steps=30, callbacks=[by_hand, callback, behind])
    for name, score in callback.movement.scores.items():
        torch.testing.assert_close(score, by_hand.scores[name].flatten())
    assert behind.returned > 0, "removed weights can come back"
    assert sum(int((weight != 0).sum()) for weight in Weights(module).weights().values()) == 12


def test_movement_pruning_down_to_everything_changes_nothing() -> None:
    module, _ = trained(MovementPruning(Polynomial(), Budget(share=1.0), last_step=10))
    assert_same(dict(module.state_dict()), dict(trained(None)[0].state_dict()))


@pytest.mark.parametrize("granularity", [Block(1, 1), Block(2, 4)], ids=repr)
def test_movement_pruning_of_blocks(granularity: Granularity) -> None:
    module, _ = trained(MovementPruning(Polynomial(), Budget(share=0.5), last_step=14, granularity=granularity))
    if granularity == Block(1, 1):
        single, _ = trained(MovementPruning(Polynomial(), Budget(share=0.5), last_step=14, granularity=Unstructured()))
        assert_same(dict(module.state_dict()), dict(single.state_dict()))
    for weight in Weights(module).weights().values():
        tiles = (weight != 0).unfold(0, granularity.height, granularity.height)  # type: ignore[attr-defined]
        alive = tiles.unfold(1, granularity.width, granularity.width).flatten(2)  # type: ignore[attr-defined]
        assert bool((alive.all(dim=2) == alive.any(dim=2)).all())


def test_soft_movement_pruning_is_its_formulas() -> None:
    penalty = 0.5
    callback = SoftMovementPruning(penalty, 0.4, granularity=Block(2, 4), rate=0.5)
    masks: list[dict[str, Tensor]] = []

    class Masks(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            above = callback.movement.above(0.4) or {name: torch.ones_like(m) for name, m in callback.keep.items()}
            floors = {name: mask.sum() == 0 for name, mask in above.items()}
            assert all(floors[name] or torch.equal(above[name], mask) for name, mask in callback.keep.items())
            masks.append({name: mask.clone() for name, mask in callback.keep.items()})

    module = Regression(rate=0.1, optimizer=torch.optim.SGD)
    by_hand: dict[str, Tensor] = {}

    class Sums(lightning.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for name, weight in Weights(pl_module).weights().items():
                tiles = (weight.grad * callback.values()[name]).unfold(0, 2, 2).unfold(1, 4, 4)  # type: ignore[operator]
                before = by_hand.get(name, torch.zeros(tiles[..., 0, 0].numel(), dtype=torch.float64))
                gate = torch.sigmoid(before)
                by_hand[name] = before - 0.5 * (tiles.sum((2, 3)).flatten() + penalty * gate * (1 - gate))

    fit(module, BATCHES, steps=12, callbacks=[Sums(), callback, Masks()])
    for name, score in callback.movement.scores.items():
        torch.testing.assert_close(score, by_hand[name])
    assert all(bool(mask.all()) for mask in masks[0].values()) and not all(bool(m.all()) for m in masks[-1].values())
    for name, mask in callback.keep.items():
        assert torch.equal(mask, callback.movement.above(0.4)[name]) or int(mask.sum()) == 1


@pytest.mark.parametrize("share", [0.34, 0.5, 1.0])
def test_soft_movement_pruning_hardens_to_a_budget(share: float) -> None:
    callback = SoftMovementPruning(
        0.5, 0.4, Polynomial(), last_step=8, budget=Budget(share=share), granularity=Block(2, 4), rate=0.5
    )
    module, _ = trained(callback)
    assert sum(int(mask.sum()) for mask in callback.keep.values()) == int(share * 6)
    zeros = sum(int((weight == 0).sum()) for weight in Weights(module).weights().values())
    assert zeros == 8 * (6 - int(share * 6))


def test_soft_movement_pruning_without_a_penalty_and_with_slow_scores_changes_nothing() -> None:
    module, _ = trained(SoftMovementPruning(0.0, rate=1e-9))
    assert_same(dict(module.state_dict()), dict(trained(None)[0].state_dict()))


def test_a_penalty_grows_with_its_schedule() -> None:
    callback = SoftMovementPruning(2.0, schedule=Polynomial(1), first_step=4, last_step=8)
    for step, ramp in [(0, 0.0), (4, 0.0), (6, 0.5), (8, 1.0), (30, 1.0)]:
        callback.step = step
        assert callback._ramp() == pytest.approx(ramp)


def test_values_come_back_when_a_step_fails() -> None:
    class Failing(Regression):
        def training_step(self, batch: Tensor, step: int) -> Tensor:
            if step == 3:
                raise RuntimeError("out of luck")
            return super().training_step(batch, step)

    module = Failing()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(module, BATCHES, steps=5, callbacks=[MovementPruning(OneShot(), QUARTER, last_step=0)])
    assert all(bool((weight != 0).all()) for weight in Weights(module).weights().values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StochasticAnnealing({}, last_step=3, start=1.5), "start"),
        (lambda: MovementPruning(Polynomial(), QUARTER, last_step=3, first_step=4), "first_step"),
        (lambda: MovementPruning(Polynomial(), QUARTER, last_step=3, rate=0.0), "rate"),
        (lambda: SoftMovementPruning(1.0, threshold=0.5), "threshold"),
        (lambda: SoftMovementPruning(-1.0), "penalty"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
