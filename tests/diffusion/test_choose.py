"""Budgets of recipes are met by the cut network itself, never exceeded and missed by less than a unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from diffusion.choose import Target, choose, find_target, floored
from diffusion.recipe import Budget, Units
from secateur.allocation import allocate_per_group
from secateur.recipe import recipe_of
from secateur.surgery.plan import measure
from secateur.units import Keep, Scores
from tests.diffusion.models import random_model
from tests.diffusion.recipes import recipe


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    random_model("unet").save_pretrained(folder)
    return folder


def target_of(model: Path, units: Units, budget: Budget) -> Target:
    return find_target(recipe_of(recipe(model, units=units, budget=budget)))


def random_scores(target: Target) -> Scores:
    generator = torch.Generator().manual_seed(0)
    return {group.name: torch.rand(group.size, generator=generator) for group in target.groups}


def cost(target: Target, keep: Keep, name: str) -> float:
    return float(getattr(measure(target.network.cut(keep)), name))


WIDTHS = Units(kinds=("heads", "neurons", "channels"))
NESTED = Units(kinds=("heads", "attentions", "resnets", "stacks"), min_keep=0)
OPERATORS = Units(kinds=("operators",))


@pytest.mark.parametrize("units", [WIDTHS, NESTED, OPERATORS], ids=["widths", "nested", "operators"])
@pytest.mark.parametrize("name", ["params", "macs", "bytes"])
def test_the_cut_network_meets_the_budget(unet: Path, units: Units, name: Any) -> None:
    budget = Budget(remove=0.3, cost=name)
    target = target_of(unet, units, budget)
    keep = choose(target, random_scores(target), budget)
    limit = 0.7 * getattr(target.size, name)
    assert cost(target, keep, name) <= limit
    left_out = [(group, unit) for group, kept in keep.items() for unit in (~kept).nonzero()[:1, 0].tolist()]
    for group, unit in left_out[::4]:
        more = {other: kept.clone() for other, kept in keep.items()}
        more[group][unit] = True
        assert cost(target, more, name) > limit or cost(target, more, name) == cost(target, keep, name)


def test_other_allocators_meet_it_too(unet: Path) -> None:
    budget = Budget(limit=500_000, cost="params", allocator=allocate_per_group)
    target = target_of(unet, WIDTHS, budget)
    keep = choose(target, random_scores(target), budget)
    assert cost(target, keep, "params") <= 500_000
    shares = [float(kept.double().mean()) for name, kept in keep.items() if kept.numel() >= 64]
    assert max(shares) - min(shares) < 0.1


def test_nothing_goes_where_nothing_has_to(unet: Path) -> None:
    for budget in (Budget(remove=0.0), Budget(limit=1e12)):
        target = target_of(unet, WIDTHS, budget)
        assert all(bool(kept.all()) for kept in choose(target, random_scores(target), budget).values())


def test_floors_of_a_recipe_hold(unet: Path) -> None:
    units = Units(kinds=("neurons",), floors={"*": 20}, min_keep=0)
    budget = Budget(remove=0.6, of="units")
    target = target_of(unet, units, budget)
    scores = random_scores(target) | {target.groups[0].name: torch.full((target.groups[0].size,), -1.0)}
    kept = choose(target, scores, budget)
    assert int(kept[target.groups[0].name].sum()) == 20
    assert all(int(mask.sum()) >= 20 for mask in kept.values())
    with pytest.raises(ValueError, match="floors of the groups"):
        target_of(unet, units, Budget(remove=0.9, of="units"))
    without = floored(target.network, {target.groups[0].name: 0})
    assert without.groups()[0].min_keep == 0 and without.groups()[1].min_keep == 20


def test_a_floor_leaves_masks_as_they_are() -> None:
    from diffusion.units import prunable

    network = prunable(random_model("dit"), ("heads", "neurons"))
    same = floored(network, {network.groups()[0].name: 2})
    for name in ("blocks", "counts", "cuts", "left_out", "emptied", "scattered", "factors"):
        assert getattr(same, name) == getattr(network, name), name
