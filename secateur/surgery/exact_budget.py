"""Which units stay, so that the cut network itself meets a budget of multiply-adds, parameters or bytes."""

from __future__ import annotations

import torch

from secateur.allocation import Allocator, Budget, checked_scores, unit_costs
from secateur.maths import order_by_score, topk_mask
from secateur.surgery.cut_cost import CutCost
from secateur.surgery.network import Network
from secateur.units import Keep, Scores

# A budget that is missed by less than this share of itself counts as met: costs are sums in float64.
_TOLERANCE = 1e-9


def allocate_cut(network: Network, scores: Scores, budget: Budget, allocator: Allocator | None = None) -> Keep:
    """Which units stay of a network whose cut is to have a share of its multiply-adds, parameters or bytes.

    `Budget(share=0.5, cost="macs")` gives a network of half the multiply-adds, never more, where the allocators of
    `secateur.allocation` add up what each unit saves alone: a layer that loses half of its inputs and half of its
    outputs is left with a quarter. Parts that hold no units count too. No unit that was left out would still fit.

    Without an allocator, each group keeps its `min_keep` best units, and all others compete from the highest score to
    the lowest, as in `allocate`; how many of them fit is found by bisection. With one, its limit is bisected instead,
    and what it leaves goes to the best units that still fit.

    Args:
        network: with example inputs where the budget is of multiply-adds.
        scores: group name -> (size,), the higher the better; `score_per_cost` weighs them by what units cost.
        budget: a share of, or a limit on, "macs", "params" or "bytes" of the whole network.
        allocator: another way to choose, such as `allocate_per_group`.

    Returns:
        Group name -> (size,) bool, on the device of that group's scores.

    Raises:
        ValueError: scores are missing, misshapen or NaN, the cost is none of the three, or what has to stay costs more.
    """
    groups = network.groups()
    devices = {group.name: checked_scores(scores, group).device for group in groups}
    cost = CutCost(network, budget.cost)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    whole = cost(keep)
    amount = (whole * budget.share if budget.share is not None else budget.amount(groups)) * (1 + _TOLERANCE)
    if whole > amount:
        if not groups:
            raise ValueError(f"the network has no units that could go: {network.left_out or 'trace it first'}")
        order = _Order(network, scores)
        keep = order.longest(cost, amount) if allocator is None else _bisected(allocator, scores, cost, budget, amount)
        if cost(keep) > amount:
            raise ValueError(
                f"the cut network cannot have {amount:,.6g} of its {whole:,.6g} {budget.cost}: what no unit owns, and "
                f"the floors of the groups, cost {cost(keep):,.6g}; raise the budget or lower min_keep"
            )
        order.fill(keep, cost, amount)
    return {name: mask.to(devices[name]) for name, mask in keep.items()}


def score_per_cost(scores: Scores, network: Network, cost: str) -> Scores:
    """Scores over what each unit saves if it goes alone, as knapsacks rank: cheap units are worth more.

    Args:
        scores: group name -> (size,) worths, not negative.
        network: whose units they are.
        cost: "macs", "params", "bytes", or any other cost of the groups.

    Raises:
        ValueError: a score is negative, or a unit costs nothing.
    """
    ranked = {}
    for group in network.groups():
        costs, worth = unit_costs(group, cost), checked_scores(scores, group)
        if bool((costs <= 0).any()) or bool((worth < 0).any()):
            raise ValueError(f"group {group.name!r}: scores per {cost} need scores of 0 or more, and costs above 0")
        ranked[group.name] = worth.double() / costs.to(worth.device)
    return ranked


class _Order:
    """All units of a network from the best to the worst, each group's floor first."""

    def __init__(self, network: Network, scores: Scores) -> None:
        self.groups = network.groups()
        values = [scores[group.name].detach().cpu().double() for group in self.groups]
        floors = [topk_mask(value, min(g.min_keep, g.size)) for value, g in zip(values, self.groups, strict=True)]
        self.sizes = [group.size for group in self.groups]
        self.floor = torch.cat(floors)
        order = order_by_score(torch.cat(values))
        self.order = order[~self.floor[order]]

    def longest(self, cost: CutCost, amount: float) -> Keep:
        """The most units from the front whose network costs at most `amount`; the floors alone, if even they do not."""
        low, high = 0, len(self.order)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(self._front(middle)) <= amount else (low, middle)
        return self._front(low)

    def _front(self, number: int) -> Keep:
        kept = self.floor.clone()
        kept[self.order[:number]] = True
        return {group.name: part for group, part in zip(self.groups, kept.split(self.sizes), strict=True)}

    def fill(self, keep: Keep, cost: CutCost, amount: float) -> None:
        """Keep the best of the other units that still fit, until none does."""
        spent = cost(keep)
        starts = torch.tensor([0, *self.sizes]).cumsum(0)
        kept = torch.cat([keep[group.name].cpu() for group in self.groups])
        added = True
        while added:
            added = False
            waiting = self.order[~kept[self.order]]
            groups = (torch.searchsorted(starts, waiting, right=True) - 1).tolist()
            full: set[str] = set()
            for index, place in zip(waiting.tolist(), groups, strict=True):
                group, unit = self.groups[place].name, index - int(starts[place])
                if group in full:
                    continue
                price = cost.added(group, unit)
                if spent + price > amount:
                    # Units that own rows are alike in their group, and none gets cheaper while others are added.
                    if group not in cost.gone:
                        full.add(group)
                    continue
                cost.keep(group, unit)
                keep[group][unit] = kept[index] = added = True
                spent += price


def _bisected(allocator: Allocator, scores: Scores, cost: CutCost, budget: Budget, amount: float) -> Keep:
    """What the allocator keeps at the highest limit whose cut network costs at most `amount`."""
    groups = cost.network.groups()
    costs = [unit_costs(group, budget.cost) for group in groups]
    values = [scores[group.name].detach().cpu() for group in groups]
    floors = [topk_mask(value, min(g.min_keep, g.size)) for value, g in zip(values, groups, strict=True)]
    low = sum(float(each[floor].sum()) for each, floor in zip(costs, floors, strict=True))
    high = sum(float(each.sum()) for each in costs)
    step = min(float(each[each > 0].min()) for each in costs if bool((each > 0).any())) / 2
    best = allocator(scores, groups, Budget(limit=low, cost=budget.cost))
    while high - low > step:
        middle = (low + high) / 2
        keep = allocator(scores, groups, Budget(limit=middle, cost=budget.cost))
        if cost(keep) <= amount:
            best, low = keep, middle
        else:
            high = middle
    return {name: mask.cpu() for name, mask in best.items()}
