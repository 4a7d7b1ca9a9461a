"""Which blocks can go without cutting a network's output off from its input."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.allocation import Budget, checked_scores, unit_costs
from secateur.maths import order_by_score
from secateur.surgery.cost import evaluating, run_example
from secateur.surgery.network import Network
from secateur.units import Keep, Scores


class Paths:
    """The ways from a network's inputs to its outputs, and the blocks that lie on them.

    They are read off autograd's graph of one forward of the example inputs, and work on the meta device too. A block
    that leaves its input, a part of itself or a 1x1 convolution when it goes still lets the input through.

    Args:
        network: with blocks, and example inputs that are real numbers.

    Raises:
        ValueError: there are no example inputs that have gradients, or the output does not depend on them.
    """

    def __init__(self, network: Network) -> None:
        self._ends: dict[str, set[Any]] = {}
        self._sources: set[Any] = set()
        inputs = tree_map(self._tracked, network.example_inputs)
        leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not leaves:
            raise ValueError("paths from input to output need example inputs of real numbers")
        module = network.module
        walls = [b.module for each in network.blocks.values() for b in each if b.leaves == "nothing" and not b.part]
        with ExitStack() as stack:
            stack.enter_context(evaluating(module))
            stack.enter_context(torch.enable_grad())
            for name in walls:
                hook = module.get_submodule(name).register_forward_hook(_marking(self._ends.setdefault(name, set())))
                stack.callback(hook.remove)
            # A view of each input has a node of its own, where paths begin.
            started = tree_map(self._started, inputs)
            outputs = tree_leaves(run_example(module, started))
        self._outputs = [o.grad_fn for o in outputs if isinstance(o, Tensor) and o.grad_fn is not None]
        if not self.connected(()):
            raise ValueError("the network's output does not depend on its example inputs")

    def connected(self, gone: Collection[str]) -> bool:
        """Whether some output still depends on an input once the blocks of these module names are gone."""
        seen = {node for name in gone for node in self._ends.get(name, ())}
        waiting = [node for node in self._outputs if node not in seen]
        while waiting:
            node = waiting.pop()
            if node in self._sources:
                return True
            if node in seen:
                continue
            seen.add(node)
            waiting += [before for before, _ in node.next_functions if before is not None and before not in seen]
        return False

    def _tracked(self, value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return value.detach().requires_grad_() if real else value

    def _started(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return value
        begun = value.view_as(value)
        self._sources.add(begun.grad_fn)
        return begun


def _marking(ends: set[Any]) -> Any:
    def mark(_module: nn.Module, _args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        ends.add(first.grad_fn)

    return mark


def allocate_connected(network: Network, scores: Scores, budget: Budget) -> Keep:
    """Drop the units of the lowest scores, but for blocks without which no path leads from input to output.

    The hierarchical search of H2SPG in OTOv3 (Chen et al., arXiv 2312.09411): operators are taken in order of saliency,
    and one that is a cut vertex of what is left of the graph is passed over. `secateur.regularizers.HalfSpace` with
    this `keep` then trains the others to 0.

    Args:
        network: with blocks, and example inputs.
        scores: group name -> (size,), the higher the better.
        budget: how much may stay, in what units cost alone.

    Returns:
        Group name -> (size,) bool: within the budget, and nothing that was left out would fit.

    Raises:
        ValueError: scores are missing, misshapen or NaN, or what has to stay exceeds the budget.
    """
    groups, paths = network.groups(), Paths(network)
    devices = {group.name: checked_scores(scores, group).device for group in groups}
    costs = {group.name: unit_costs(group, budget.cost).tolist() for group in groups}
    units = [(group.name, unit) for group in groups for unit in range(group.size)]
    order = order_by_score(torch.cat([scores[group.name].detach().cpu().double() for group in groups]))
    floors = {group.name: min(group.min_keep, group.size) for group in groups}
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
    amount, spent = budget.amount(groups) * (1 + 1e-9), sum(sum(each) for each in costs.values())
    gone: set[str] = set()
    dropped = []
    for index in reversed(order.tolist()):
        name, unit = units[index]
        blocks = {network.blocks[name][unit].module} if name in network.blocks else set()
        if spent <= amount:
            break
        if int(keep[name].sum()) <= floors[name] or (blocks and not paths.connected(gone | blocks)):
            continue
        keep[name][unit] = False
        gone |= blocks
        dropped.append((name, unit))
        spent -= costs[name][unit]
    if spent > amount:
        raise ValueError(
            f"a budget of {budget.amount(groups):g} {budget.cost} cannot hold the floors and a path from input to "
            f"output, which cost {spent:g}; raise the budget"
        )
    for name, unit in reversed(dropped):
        if spent + costs[name][unit] <= amount:
            keep[name][unit] = True
            spent += costs[name][unit]
    return {name: mask.to(devices[name]) for name, mask in keep.items()}
