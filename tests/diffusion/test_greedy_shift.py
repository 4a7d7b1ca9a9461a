"""Latent shifts scored again after each removal: two units that stand in for each other do not both go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.choose import meets
from diffusion.greedy_shift import GreedyLatentShift
from diffusion.recipe import Budget, Units
from diffusion.scores import LatentSet, LatentShift
from secateur.surgery import Network
from secateur.surgery.cut import Block
from secateur.units import Member, UnitGroup
from tests.contracts import assert_deterministic, assert_scores_fit
from tests.diffusion.recipes import recipe, save_dit


class Summed(nn.Module):
    """Inputs above 1 through one layer, and clamped or not."""

    def __init__(self, weight: Tensor, greatest: float) -> None:
        super().__init__()
        self.layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight.data.copy_(weight)
        self.greatest = greatest

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).clamp(max=self.greatest)


def summed(weight: Tensor, greatest: float = 1e9) -> Network:
    group = UnitGroup("inputs", weight.shape[1], (Member("layer.weight", 1),), min_keep=0)
    return Network(Summed(weight, greatest), [group])


def calibration(count: int, calls: list[int] | None = None) -> LatentSet:
    def sample(target: Any, seeds: Sequence[int]) -> Tensor:
        if calls is not None:
            calls.append(1)
        rows = [1 + torch.rand(count, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return target(torch.stack(rows))

    return LatentSet(sample, tuple(range(8)))


# The first two give the same clamped sum, alone or together; the third stands alone.
REDUNDANT = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
APART = torch.tensor([0.4, 0.1, 0.9, 0.2, 0.7]).diag()


def removed(scores: Tensor, count: int) -> set[int]:
    return set(scores.argsort()[:count].tolist())


def test_of_two_that_stand_in_for_each_other_one_stays() -> None:
    target, latents = summed(REDUNDANT, greatest=1.0), calibration(3)
    at_once, greedily = (
        criterion.score(target, latents)["inputs"] for criterion in (LatentShift(), GreedyLatentShift())
    )
    assert removed(at_once, 2) == {0, 1}
    assert len(removed(greedily, 2) & {0, 1}) == 1 and 2 in removed(greedily, 2)


def test_units_that_do_not_interact_go_as_at_once() -> None:
    target, latents = summed(APART), calibration(5)
    at_once, greedily = (
        criterion.score(target, latents)["inputs"] for criterion in (LatentShift(), GreedyLatentShift())
    )
    assert torch.equal(at_once.argsort(), greedily.argsort())
    assert_scores_fit(GreedyLatentShift().score(target, latents), target.groups())
    assert_deterministic(lambda: GreedyLatentShift().score(target, latents))


def test_what_is_left_once_it_is_enough_keeps_the_last_order() -> None:
    calls: list[int] = []
    target, latents = summed(APART), calibration(5, calls)
    two = GreedyLatentShift(enough=lambda keep: int(keep["inputs"].sum()) <= 3)
    assert two.score(target, latents)["inputs"].tolist() == [2.0, 0.0, 4.0, 1.0, 3.0]
    assert len(calls) == 1 + 5 + 4


def test_a_killed_run_goes_on_from_its_record(tmp_path: Path) -> None:
    target, path = summed(APART), tmp_path / "shifts.json"
    calls: list[int] = []

    def killed(done: float, doing: str) -> None:
        if doing.endswith("after 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GreedyLatentShift(record=path, report=killed).score(target, calibration(5))
    found = GreedyLatentShift(record=path).score(target, calibration(5, calls))
    assert len(calls) == 1 + 3 + 2 + 1
    assert torch.equal(found["inputs"], GreedyLatentShift().score(target, calibration(5))["inputs"])


def test_what_lies_in_a_block_goes_with_it() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.full(parameter.shape, 0.1 * (index + 1)))
        module[0][1].weight.copy_(torch.eye(2))  # type: ignore[index]
        module[0][1].bias.zero_()  # type: ignore[index]
        module[0][0].weight.copy_(torch.eye(2))  # type: ignore[index]
        module[0][0].bias.fill_(1e-3)  # type: ignore[index]
    blocks = {"outer": [Block("0")], "inner": [Block("0.0")], "other": [Block("1")]}
    groups = [UnitGroup(name, 1, (), min_keep=0) for name in blocks]
    target = Network(module, groups, torch.zeros(1, 2), blocks=blocks)
    calls: list[int] = []
    scores = GreedyLatentShift().score(target, calibration(2, calls))
    assert {name: float(score[0]) for name, score in scores.items()} == {"outer": 0.0, "inner": 1.0, "other": 2.0}
    assert len(calls) == 1 + 3 + 1


def test_a_recipe_holds_it_to_its_budget(tmp_path: Path) -> None:
    from diffusion.choose import find_target
    from diffusion.prune import prune, to_the_budget
    from secateur.recipe import recipe_of

    budget = Budget(remove=0.3, cost="macs")
    units = Units(kinds=("attentions", "feed_forwards"), min_keep=0)
    made = recipe(save_dit(tmp_path / "dit"), units=units, criterion=GreedyLatentShift(), budget=budget)
    target = find_target(recipe_of(made))
    told = to_the_budget(GreedyLatentShift(), target, budget)
    assert isinstance(told, GreedyLatentShift) and told.enough is not None
    everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups}
    nothing = {name: torch.zeros_like(kept) for name, kept in everything.items()}
    assert not told.enough(everything) and told.enough(nothing)
    assert meets(target, replace(budget, cost="ms")) is None
    _, record = prune(made, tmp_path / "out")
    assert record.criterion == "GreedyLatentShift"
    assert record.plan.pruned.macs is not None and record.plan.dense.macs is not None
    assert record.plan.pruned.macs <= 0.7 * record.plan.dense.macs


def test_it_needs_latents() -> None:
    with pytest.raises(ValueError, match="needs a LatentSet"):
        GreedyLatentShift().score(summed(APART))
