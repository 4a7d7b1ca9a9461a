"""The scratch control trains what it says, for as long as it says, and draws from nothing but its seeds."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from secateur.harness.control import Arm, ScratchControl, reinitialised, scratch_b_steps, scratch_control
from secateur.report.record import to_json
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.networks import convolutional, errors, perceptron


def sparse() -> nn.Sequential:
    module = perceptron(4, 8, 2)
    with torch.no_grad():
        for weight in (module[0].weight, module[2].weight):
            weight[weight.abs() < weight.abs().median()] = 0
    return module


DATA = errors(perceptron(4, 8, 2, seed=9), 4, samples=32)


def descend(module: nn.Module, steps: int, seed: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(DATA.losses(module))).mean().backward()
        optimizer.step()


@torch.no_grad()
def goodness(module: nn.Module) -> float:
    return -float(torch.stack(list(DATA.losses(module))).mean())


def controlled(**options: object) -> ScratchControl:
    arguments = {"steps": 10, "fine_tune_steps": 3, "dense_cost": 3.0, "pruned_cost": 2.0, "seeds": (4, 5)}
    return scratch_control(sparse(), descend, goodness, **{**arguments, **options})  # type: ignore[arg-type]


def test_scratch_b_spends_the_dense_networks_computation_and_doubles_at_most() -> None:
    assert scratch_b_steps(100, 3.0, 2.0) == 150
    assert scratch_b_steps(100, 8.0, 2.0) == 200
    assert scratch_b_steps(100, 8.0, 2.0, cap=10) == 400
    assert scratch_b_steps(100, 2.0, 2.0) == 100


def test_new_weights_keep_shapes_and_masks() -> None:
    module = sparse()
    new = reinitialised(module, seed=1)
    for (name, old), fresh in zip(module.named_parameters(), new.parameters(), strict=True):
        assert old.shape == fresh.shape and old.dtype == fresh.dtype
        assert bool((old != fresh)[old != 0].all()), name
        if old.ndim > 1:
            assert_same(old == 0, fresh == 0, name)
    other = reinitialised(module, seed=2)
    assert not torch.equal(new[0].weight, other[0].weight)  # type: ignore[index]


def test_new_weights_forget_what_batch_norms_have_seen() -> None:
    module = convolutional().train()
    module(torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert float(module[1].running_mean.abs().max()) > 0  # type: ignore[operator,union-attr]
    assert float(reinitialised(module, 0)[1].running_mean.abs().max()) == 0  # type: ignore[index,union-attr]


def test_the_record_has_all_arms_with_their_steps_and_seeds() -> None:
    calls: list[tuple[int, int]] = []

    def train(module: nn.Module, steps: int, seed: int) -> None:
        calls.append((steps, seed))
        descend(module, steps, seed)

    record = scratch_control(
        sparse(), train, goodness, steps=10, fine_tune_steps=3, dense_cost=3, pruned_cost=2, seeds=(4, 5)
    )
    assert calls == [(3, 4), (3, 5), (10, 4), (10, 5), (15, 4), (15, 5)]
    assert record.seeds == (4, 5)
    assert (record.inherited.steps, record.scratch_e.steps, record.scratch_b.steps) == (3, 10, 15)
    assert record.inherited.scores[0] == record.inherited.scores[1], "nothing but new weights differs between seeds"
    assert record.scratch_b.scores[0] != record.scratch_b.scores[1]
    assert all(b > e for b, e in zip(record.scratch_b.scores, record.scratch_e.scores, strict=True))
    assert json.loads(json.dumps(to_json(record)))["scratch_b"]["steps"] == 15


def test_without_steps_inherited_weights_are_scored_as_they_are() -> None:
    assert controlled(fine_tune_steps=0).inherited.scores == (goodness(sparse()),) * 2


def test_means_spread_and_gain() -> None:
    record = ScratchControl((0, 1), Arm(1, (0.9, 0.8)), Arm(5, (0.7, 0.7)), Arm(9, (0.6, 0.9)))
    assert record.scratch_b.mean == pytest.approx(0.75) and record.inherited.std == pytest.approx(0.1 / 2**0.5)
    assert record.gain == pytest.approx(0.85 - 0.75)
    assert Arm(1, (0.5,)).std == 0


def test_the_pruned_network_and_the_global_random_state_are_left_alone() -> None:
    pruned = sparse()

    def noisy(module: nn.Module, steps: int, seed: int) -> None:
        torch.randn(steps)
        descend(module, steps, seed)

    def scores() -> list[Tensor]:
        record = scratch_control(
            pruned, noisy, goodness, steps=3, fine_tune_steps=1, dense_cost=1, pruned_cost=1, seeds=[0]
        )
        return [torch.tensor(arm.scores) for arm in (record.inherited, record.scratch_e, record.scratch_b)]

    before = [parameter.detach().clone() for parameter in pruned.parameters()]
    assert_deterministic(scores)
    assert_same(before, [parameter.detach() for parameter in pruned.parameters()])


def test_what_cannot_be_controlled_is_refused() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

    with pytest.raises(ValueError, match=r"'1' \(Own\) has parameters and no reset_parameters"):
        reinitialised(nn.Sequential(nn.ReLU(), Own()), 0)
    with pytest.raises(ValueError, match="no seeds"):
        controlled(seeds=())
    with pytest.raises(ValueError, match="pruned_cost <= dense_cost"):
        controlled(pruned_cost=4.0)
    with pytest.raises(ValueError, match="cap >= 1"):
        controlled(cap=0.5)
    with pytest.raises(ValueError, match="steps >= 1"):
        controlled(steps=0)
