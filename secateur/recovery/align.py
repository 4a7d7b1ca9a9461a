"""Two networks of one architecture made comparable: the units of one in the order of the other's."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from secateur.surgery.layers import named_tensors
from secateur.surgery.network import Network, rows_of
from secateur.training.seeding import generator_at
from secateur.units import Member, UnitGroup


@dataclass(frozen=True)
class WeightMatching:
    """Permute the units of a network so that its weights come nearest to another's; what it computes stays the same.

    Ainsworth et al.: Git Re-Basin (arXiv 2209.04836), section 3.2: the inner product of the two networks' weights is
    raised group by group, each by an exact linear assignment, until no group changes. Qu and Horvath (arXiv 2402.05966)
    follow it with `Renormalize`. Networks that were trained apart can so be averaged.

    Args:
        sweeps: over all groups, at most.
        seed: of the order of the groups in each sweep.
    """

    sweeps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sweeps < 1:
            raise ValueError(f"sweeps must be at least 1, got {self.sweeps}")

    @torch.no_grad()
    def __call__(self, network: Network, reference: Network) -> tuple[Network, dict[str, Int64[Tensor, " size"]]]:
        """A permuted copy of `network`, and group name -> order: unit i of the copy was unit order[i].

        Groups of whole modules stay in their order.

        Raises:
            ValueError: the networks' tensors differ in names or shapes.
        """
        module = copy.deepcopy(network.module)
        tensors, goals = named_tensors(module), named_tensors(reference.module)
        different = [
            name
            for name in tensors.keys() | goals.keys()
            if name not in tensors or name not in goals or tensors[name].shape != goals[name].shape
        ]
        if different:
            raise ValueError(f"the networks differ in {sorted(different)}")
        parameters = dict(module.named_parameters())
        groups = [
            group
            for group in network.groups()
            if group.name not in network.blocks and group.name not in network.scattered
        ]
        orders = {group.name: torch.arange(group.size) for group in groups}
        for sweep in range(self.sweeps):
            changed = False
            for index in torch.randperm(len(groups), generator=generator_at(self.seed, sweep)).tolist():
                group = groups[index]
                weights = {name: parameters[name] for name in _names(group) if name in parameters}
                order = _best_order(group, weights, goals)
                if _gain(group, order, weights, goals) > 0:
                    changed = True
                    orders[group.name] = orders[group.name][order]
                    for name in _names(group):
                        tensors[name].copy_(_permuted(group, order, name, tensors[name]))
            if not changed:
                break
        return _with_module(network, module), orders


def _best_order(group: UnitGroup, weights: Mapping[str, Tensor], goals: Mapping[str, Tensor]) -> Int64[Tensor, " size"]:
    """Which unit goes to each place for the largest inner product, where all other units stay."""
    similarity = torch.zeros(group.size, group.size, dtype=torch.float64)
    for member in group.members:
        if member.param in weights:
            mine, theirs = (_units(values[member.param], member, group.size) for values in (weights, goals))
            similarity += theirs @ mine.T
    return torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1])


def _gain(group: UnitGroup, order: Tensor, weights: Mapping[str, Tensor], goals: Mapping[str, Tensor]) -> float:
    """By how much the inner product rises; at most 0 where nothing but rounding does.

    A weight that the group both makes and reads is permuted on both sides, which no assignment foresees.
    """
    gain, size = 0.0, 0.0
    for name, value in weights.items():
        goal = goals[name].double()
        change = _permuted(group, order, name, value).double() - value.double()
        gain += float((change * goal).sum())
        size += float((value.double() * goal).abs().sum())
    return gain if gain > 1e-10 * size else 0.0


def _units(value: Tensor, member: Member, size: int) -> Float[Tensor, "size elements"]:
    return value.detach().double().cpu().movedim(member.dim, 0)[rows_of(member, size)].reshape(size, -1)


def _names(group: UnitGroup) -> list[str]:
    return list(dict.fromkeys(member.param for member in group.members))


def _permuted(group: UnitGroup, order: Tensor, name: str, value: Tensor) -> Tensor:
    for member in group.members:
        if member.param == name:
            rows = rows_of(member, group.size)
            index = torch.arange(value.shape[member.dim])
            index[rows.flatten()] = rows[order].flatten()
            value = value.index_select(member.dim, index.to(value.device))
    return value


def _with_module(network: Network, module: torch.nn.Module) -> Network:
    return Network(
        module,
        network.groups(),
        network.example_inputs,
        blocks=network.blocks,
        counts=network.counts,
        cuts=network.cuts,
        left_out=network.left_out,
        emptied=network.emptied,
        scattered=network.scattered,
    )
