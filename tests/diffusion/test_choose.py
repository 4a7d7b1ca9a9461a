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
from secateur.surgery.latency import UnitTimes
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


def times_of(target: Target) -> UnitTimes:
    """A millisecond each unit, and as much again for all that is no unit."""
    units = {group.name: torch.ones(group.size, dtype=torch.float64) for group in target.groups}
    return UnitTimes(2.0 * sum(map(len, units.values())), units)


def test_shares_of_kinds_in_time(unet: Path) -> None:
    budget = Budget(by_kind={"heads": 0.5, "neurons": 0.25}, cost="ms")
    target = target_of(unet, WIDTHS, budget)
    keep = choose(target, random_scores(target), budget, times_of(target))
    for kind, gone in (("heads", 0.5), ("neurons", 0.25), ("channels", 0.0)):
        kept = torch.cat([keep[name] for name, own in target.kinds.items() if own == kind])
        assert int((~kept).sum()) == int(gone * len(kept) + 0.999), kind


@pytest.mark.parametrize(
    ("options", "gone"),
    [({"remove": 0.2}, 0.4), ({"remove": 0.2, "of": "units"}, 0.2), ({"limit": 0.7}, 0.6), ({"limit": 1.5}, 0.0)],
    ids=["of the model", "of the units", "limit", "met as it is"],
)
def test_time_is_that_of_the_whole_model(unet: Path, options: dict[str, Any], gone: float) -> None:
    """Of which its units take half; limits are given as shares of it here."""
    units = Units(kinds=("neurons",))
    target = target_of(unet, units, Budget(remove=0.0))
    times = times_of(target)
    if "limit" in options:
        options = options | {"limit": options["limit"] * times.whole}
    budget = Budget(cost="ms", **options)
    keep = choose(target, random_scores(target), budget, times)
    total = sum(group.size for group in target.groups)
    left_out = sum(int((~kept).sum()) for kept in keep.values())
    assert gone * total - 1e-6 <= left_out < gone * total + 1
    with pytest.raises(ValueError, match="cannot go"):
        choose(target, random_scores(target), Budget(cost="ms", remove=0.6), times)


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
