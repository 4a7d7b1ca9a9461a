"""Cut networks that cost what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Allocator, Budget, allocate, allocate_knapsack, allocate_per_group
from secateur.surgery import Network, trace
from secateur.surgery.cost import count_bytes, count_macs, count_params
from secateur.surgery.cut_cost import CutCost
from secateur.surgery.exact_budget import allocate_cut, score_per_cost
from secateur.surgery.reorder import reordered
from secateur.units import Keep, Scores
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.surgery import networks, test_attention, test_stand_in
from tests.secateur.surgery.networks import pixels, seeded
from tests.secateur.surgery.test_trace import every_kind, half

COSTS = ["macs", "params", "bytes"]


def counted(network: Network, cost: str) -> int:
    """What the network costs, counted on the module itself."""
    if cost == "macs":
        return count_macs(network.module, network.example_inputs)
    return count_params(network.module) if cost == "params" else count_bytes(network.module)


def random_scores(network: Network, seed: int = 0) -> Scores:
    source = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=source) for group in network.groups()}


def blocks() -> Network:
    """Branches, heads and whole layers, some of which lie in others."""
    return test_attention.mapped()


def stand_ins() -> Network:
    """Blocks that leave parts of themselves, and a layer that keeps its width."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return test_stand_in.mapped(test_stand_in.Whole().eval())


def drawn(network: Network, seed: int) -> Keep:
    """About half of the units of each group, and at least its floor."""
    keep = {}
    for name, value in random_scores(network, seed).items():
        floor = next(min(g.min_keep, g.size) for g in network.groups() if g.name == name)
        keep[name] = (value > 0.5) | (value >= value.sort(descending=True).values[max(floor, 1) - 1]) & (floor > 0)
    return keep


@pytest.mark.parametrize("cost", COSTS)
@every_kind
def test_costs_are_counted_without_cutting(kind: type[nn.Module], inputs: Tensor, cost: str) -> None:
    network = trace(seeded(kind), inputs)
    keep = half(network)
    assert CutCost(network, cost)(keep) == pytest.approx(counted(network.cut(keep), cost), abs=0.5)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("make", [blocks, stand_ins])
@pytest.mark.parametrize("seed", range(6))
def test_costs_of_blocks_are_counted_without_cutting(make: Callable[[], Network], cost: str, seed: int) -> None:
    network = make()
    keep = drawn(network, seed)
    count = CutCost(network, cost)
    if make is stand_ins and cost == "macs":
        # The linear layer that outlives its block is called by the block too: those calls count as if they stayed.
        keep["pair"] = torch.ones_like(keep["pair"])
    assert count(keep) == pytest.approx(counted(network.cut(keep), cost), abs=0.5)
    everything = {name: torch.ones_like(mask) for name, mask in keep.items()}
    assert count(everything) == pytest.approx(counted(network, cost), abs=0.5)
    twice = network.cut(keep)
    again = drawn(twice, seed + 10) | {name: keep[name] for name in ("pair",) if name in keep}
    assert CutCost(twice, cost)(again) == pytest.approx(counted(twice.cut(again), cost), abs=0.5)


def assert_met(network: Network, keep: Keep, budget: Budget) -> None:
    """The cut network is within the budget, and no unit that was left out would fit."""
    limit = budget.limit if budget.share is None else budget.share * counted(network, budget.cost)
    assert limit is not None
    assert counted(network.cut(keep), budget.cost) <= limit + 1e-6 * limit
    for group in network.groups():
        assert int(keep[group.name].sum()) >= min(group.min_keep, group.size)
        left_out = torch.nonzero(~keep[group.name])[:, 0]
        for unit in left_out[: 3 if group.name in network.blocks else 1].tolist():
            more = {name: mask.clone() for name, mask in keep.items()}
            more[group.name][unit] = True
            assert counted(network.cut(more), budget.cost) > limit, (group.name, unit)


@pytest.mark.parametrize("cost", COSTS)
@every_kind
def test_the_cut_network_costs_what_was_asked_for(kind: type[nn.Module], inputs: Tensor, cost: str) -> None:
    network = trace(seeded(kind), inputs)
    budget = Budget(share=0.6, cost=cost)
    keep = assert_deterministic(partial(allocate_cut, network, random_scores(network), budget))
    assert_met(network, keep, budget)


@pytest.mark.parametrize("allocator", [None, allocate, allocate_per_group, allocate_knapsack])
@pytest.mark.parametrize("make", [blocks, stand_ins, lambda: trace(seeded(networks.Residual), pixels())])
def test_every_allocator_can_be_held_to_it(allocator: Allocator | None, make: Callable[[], Network]) -> None:
    network = make()
    for cost in COSTS:
        for share in (0.5, 0.8):
            budget = Budget(share=share, cost=cost)
            assert_met(network, allocate_cut(network, random_scores(network, 3), budget, allocator), budget)
        everything = allocate_cut(network, random_scores(network), Budget(share=1.0, cost=cost), allocator)
        assert all(bool(mask.all()) for mask in everything.values())
        limit = Budget(limit=0.7 * counted(network, cost), cost=cost)
        assert_met(network, allocate_cut(network, random_scores(network), limit, allocator), limit)


def test_half_is_half_where_costs_of_units_leave_a_quarter() -> None:
    module = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())))
    network = trace(nn.Sequential(nn.Conv2d(3, 16, 1), module, nn.Conv2d(16, 2, 1)).eval(), pixels())
    budget, scores = Budget(share=0.5, cost="macs"), random_scores(network)
    whole = counted(network, "macs")
    assert counted(network.cut(allocate(scores, network.groups(), budget)), "macs") < 0.35 * whole
    small = network.cut(allocate_cut(network, scores, budget))
    assert 0.48 * whole < counted(small, "macs") <= 0.5 * whole


def test_the_best_units_stay_and_units_change_places_with_their_scores() -> None:
    network = trace(seeded(networks.Residual), pixels())
    scores, budget = random_scores(network), Budget(share=0.5, cost="params")
    keep = allocate_cut(network, scores, budget)
    orders = {g.name: torch.randperm(g.size, generator=torch.Generator().manual_seed(1)) for g in network.groups()}
    moved = {name: scores[name][order] for name, order in orders.items()}
    permuted = allocate_cut(reordered(network, orders), moved, budget)
    assert_same(permuted, {name: keep[name][order] for name, order in orders.items()})
    for group in network.groups():
        kept, out = scores[group.name][keep[group.name]], scores[group.name][~keep[group.name]]
        assert not len(out) or float(kept.min()) > float(out.max()), "within a group the best stay"


def test_scores_per_cost_favour_cheap_units() -> None:
    network = trace(seeded(networks.Residual), pixels())
    scores = {group.name: torch.ones(group.size) for group in network.groups()}
    ranked = score_per_cost(scores, network, "macs")
    for group in network.groups():
        torch.testing.assert_close(ranked[group.name] * group.cost["macs"], torch.ones(group.size, dtype=torch.float64))
    budget = Budget(share=0.5, cost="macs")
    kept = [sum(int(m.sum()) for m in allocate_cut(network, each, budget).values()) for each in (scores, ranked)]
    assert kept[1] >= kept[0]
    with pytest.raises(ValueError, match="scores per macs need scores of 0 or more"):
        score_per_cost({name: -value for name, value in scores.items()}, network, "macs")


def test_what_cannot_be_met_is_refused() -> None:
    network = trace(seeded(networks.Residual), pixels())
    scores = random_scores(network)
    for allocator in (None, allocate):
        with pytest.raises(ValueError, match="the floors of the groups, cost"):
            allocate_cut(network, scores, Budget(limit=5, cost="params"), allocator)
    with pytest.raises(ValueError, match=r"one of \('macs', 'params', 'bytes'\), got 'units'"):
        allocate_cut(network, scores, Budget(share=0.5))
    with pytest.raises(ValueError, match="need example inputs"):
        allocate_cut(Network(network.module, network.groups()), scores, Budget(share=0.5, cost="macs"))
    with pytest.raises(ValueError, match="NaN"):
        allocate_cut(network, scores | {"b1.0": torch.full((10,), torch.nan)}, Budget(share=0.5, cost="macs"))
    with pytest.raises(ValueError, match="no units that could go"):
        allocate_cut(Network(network.module, ()), {}, Budget(share=0.5, cost="params"))
