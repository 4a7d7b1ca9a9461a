"""Training towards units that can go: penalties for the loss, and optimisers that make exact zeros.

A penalty is a function of tensors by name and the groups of units that own their rows:

    loss = task_loss + 1e-4 * GroupDecay()(target.tensors(), target.groups())

where the tensors are the trained parameters themselves (of `secateur.granularity.Weights`, take `attached()`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from secateur.allocation import Budget
from secateur.granularity import spread
from secateur.selection import keep_top
from secateur.units import Keep, UnitGroup, check_keep, fold

Tensors = Mapping[str, Tensor]


class Penalty(Protocol):
    """A number to add to the loss, times a weight."""

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup], /) -> Float[Tensor, ""]: ...


@dataclass(frozen=True)
class Norm:
    """Sum of |w|^power over all weights that units own; a weight that two units own counts twice."""

    power: float = 1.0

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup], /) -> Float[Tensor, ""]:
        sizes = {name: tensor.abs().pow(self.power) for name, tensor in _of_units(tensors, groups).items()}
        return _sum(fold(sizes, group).sum() for group in groups)


@dataclass(frozen=True)
class GroupLasso:
    """Sum over units of the Euclidean norm of what they own: it brings whole units to 0.

    A unit that is 0 has the subgradient 0.
    """

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup], /) -> Float[Tensor, ""]:
        return _sum(_root(_energies(tensors, group)).sum() for group in groups)


@dataclass(frozen=True)
class GroupDecay:
    """Sum over units of gamma_k ||w_k||^2, gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)).

    DepGraph's sparse training (Fang et al. 2023, arXiv 2301.12900, eq. 6): I_k = ||w_k||^2 is the importance of unit k
    in its group, so that what matters least shrinks fastest; gamma lies in [1, 2^alpha], and has no gradient.

    Args:
        alpha: 4 in the paper; 0 is plain weight decay.
    """

    alpha: float = 4.0

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup], /) -> Float[Tensor, ""]:
        parts = []
        for group in groups:
            energies = _energies(tensors, group)
            parts.append((self.factors(energies.detach()) * energies).sum())
        return _sum(parts)

    def factors(self, energies: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """gamma: (size,) in [1, 2^alpha], and 1 where all units are alike."""
        low, high = energies.min(), energies.max()
        spread_of = (high - low).clamp_min(torch.finfo(energies.dtype).tiny)
        return 2 ** (self.alpha * torch.where(high > low, (high - energies) / spread_of, torch.zeros_like(energies)))


@dataclass(frozen=True)
class Masked:
    """Another penalty, on the units alone that are to go; what stays is not held down.

    MaskSparsity (Jiang et al. 2022, arXiv 2201.06776): choose what to prune first, by any criterion, then regularise it
    until cutting it changes nothing.

    Args:
        inner: the penalty; of weights that are 0 it must be 0, as norms are.
        keep: group name -> (size,) bool: what stays.
    """

    inner: Penalty
    keep: Keep

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup], /) -> Float[Tensor, ""]:
        check_keep(self.keep, groups)
        parts = []
        for group in _known(groups, tensors):
            going = {m.param: tensors[m.param] * self._goes(group, m, tensors[m.param]) for m in group.members}
            parts.append(self.inner(going, [group]))
        return _sum(parts)

    def _goes(self, group: UnitGroup, member: Any, tensor: Tensor) -> Tensor:
        return spread(~self.keep[group.name].to(tensor.device), member, tensor).to(tensor.dtype)


@dataclass(frozen=True)
class Nuclear:
    """Sum of the singular values of each weight of two dimensions or more, (out, everything else): low rank.

    Trained rank pruning (Xu et al. 2020, arXiv 2004.14566, section 3.2); the gradient is U V^T.
    """

    def __call__(self, tensors: Tensors, groups: Sequence[UnitGroup] = (), /) -> Float[Tensor, ""]:
        return _sum(torch.linalg.svdvals(t.flatten(1)).sum() for t in tensors.values() if t.ndim > 1)


def polarization(gates: Float[Tensor, "batch units"]) -> Float[Tensor, " units"]:
    """p (1 - p), p the mean of a unit's gate over the samples of a batch: 0 where all samples agree, at most 1/4.

    One-pass consensus of dynamic gates (Consensus sub-networks, catalogue 5, whose form is from memory of the paper):
    for binary gates it is the variance over the samples, and its gradient drives each mean to the nearer end.
    """
    mean = gates.mean(dim=0)
    return mean * (1 - mean)


class HalfSpace(Optimizer):
    """Gradient descent that sets units to exactly 0 when a step would turn them round.

    Half-space stochastic projected gradient (Chen et al. 2021, Only Train Once, arXiv 2107.07467, algorithm 2): after
    `warmup` steps on loss + penalty * sum of ||x_g||, a step to x' sets unit g to 0 where x'_g . x_g < epsilon
    ||x_g||^2, and units at 0 stay there.

    With `keep` it is the dual variant (DHSPG, Chen et al. 2023, arXiv 2303.06862; OTOv3 2312.09411): the penalty and
    the projection are on units that are to go alone, and where g . x < 0 the penalty is one that lowers both loss
    and norm, between |cos| ||g|| and ||g|| / |cos|: the given one if it is, else ||g||, a choice of ours.
    Where g points straight along -x there is none, and a unit that the loss needs may linger until `finish`.

    Args:
        tensors: name -> parameter, in the shape that the groups refer to; what groups own beyond them is left alone.
        groups: the units; they are best zero-invariant: all 0 in, 0 out.
        lr: learning rate.
        penalty: weight of the norms.
        epsilon: 0 to below 1; the larger, the sooner units go.
        warmup: steps without projection.
        keep: what must stay; None: any unit may go.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        groups: Sequence[UnitGroup],
        lr: float,
        penalty: float = 1e-3,
        epsilon: float = 0.0,
        warmup: int = 0,
        keep: Keep | None = None,
    ) -> None:
        if lr <= 0 or penalty < 0 or not 0 <= epsilon < 1 or warmup < 0:
            raise ValueError(
                "lr > 0, penalty >= 0, epsilon in [0, 1) and warmup >= 0 are needed, got "
                f"{lr}, {penalty}, {epsilon} and {warmup}"
            )
        if keep is not None:
            check_keep(keep, groups)
        super().__init__(list(tensors.values()), {"lr": lr, "steps": 0})
        self.tensors, self.groups, self.keep = dict(tensors), _known(groups, tensors), keep
        self.penalty, self.epsilon, self.warmup = penalty, epsilon, warmup

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        (options,) = self.param_groups
        owned = {m.param for group in self.groups for m in group.members}
        before = {name: tensor.clone() for name, tensor in self.tensors.items() if name in owned}
        gradients = {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in self.tensors.items()}
        directions = {name: gradient.clone() for name, gradient in gradients.items()}
        for group in self.groups:
            pull = self.pull(group, before, gradients)
            for member in group.members:
                directions[member.param] += (
                    spread(pull, member, before[member.param])
                    * before[member.param]
                    * _owned(member, before[member.param])
                )
        for name, tensor in self.tensors.items():
            tensor.sub_(directions[name], alpha=options["lr"])
        options["steps"] += 1
        if options["steps"] > self.warmup:
            self._project(before)
        return loss

    def pull(self, group: UnitGroup, before: Tensors, gradients: Tensors) -> Float[Tensor, " size"]:
        """(size,) lambda_g / ||x_g||, 0 for units at 0."""
        norms = _energies(before, group).sqrt()
        weights = torch.full_like(norms, self.penalty)
        if self.keep is not None:
            slopes = fold({name: before[name] * gradients[name] for name in before}, group)
            steep = fold({name: gradients[name].square() for name in before}, group).sqrt()
            cosine = slopes / (norms * steep).clamp_min(torch.finfo(norms.dtype).tiny)
            inside = (weights > -cosine * steep) & (weights * -cosine < steep)
            weights = torch.where((cosine >= 0) | inside, weights, steep)
            weights = weights.masked_fill(self.keep[group.name].to(norms.device), 0)
        return torch.where(norms > 0, weights / norms.clamp_min(torch.finfo(norms.dtype).tiny), torch.zeros_like(norms))

    def _project(self, before: Tensors) -> None:
        for group in self.groups:
            turned = fold({name: tensor * self.tensors[name] for name, tensor in before.items()}, group)
            energies = _energies(before, group)
            # At epsilon 0, <= instead of < keeps units at 0 that are there.
            goes = (turned < self.epsilon * energies) | (energies == 0)
            if self.keep is not None:
                goes &= ~self.keep[group.name].to(goes.device)
            for member in group.members:
                stays = spread(~goes, member, self.tensors[member.param])
                self.tensors[member.param].masked_fill_(~stays, 0)

    @torch.no_grad()
    def finish(self) -> None:
        """Set the units that are to go to 0, those that training would not let go too: the count is exact."""
        if self.keep is not None:
            for group in self.groups:
                for member in group.members:
                    tensor = self.tensors[member.param]
                    tensor.masked_fill_(~spread(self.keep[group.name].to(tensor.device), member, tensor), 0)

    def alive(self) -> Keep:
        """Group name -> (size,) bool: which units are not 0."""
        return {group.name: _energies(self.tensors, group) > 0 for group in self.groups}


class GlobalSparseMomentum(Optimizer):
    """Momentum SGD in which the weights that matter least get weight decay alone: they shrink to 0 by themselves.

    GSM (Ding et al. 2019, arXiv 1909.12778, eq. 5 to 7): z <- momentum z + decay w + B g, w <- w - lr z, where B is 1
    for the `active` weights of the largest |g w| in the whole model and 0 for all others, chosen anew in each step.
    With all of them active it is SGD, bit for bit. In the end remove the smallest.

    Args:
        params: parameters that compete.
        lr: learning rate.
        active: how many get gradients.
        momentum: 0.99 in the paper's MNIST runs; the larger, the faster passive weights shrink.
        weight_decay: eta.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(self, params: Any, lr: float, active: int, momentum: float = 0.99, weight_decay: float = 5e-4) -> None:
        if lr <= 0 or active < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                "lr > 0, active >= 0, momentum in [0, 1) and weight_decay >= 0 are needed, got "
                f"{lr}, {active}, {momentum} and {weight_decay}"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.active = active

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        moved = [(p, options) for options in self.param_groups for p in options["params"] if p.grad is not None]
        scores = {str(index): (p.grad * p).abs().flatten() for index, (p, _) in enumerate(moved)}
        groups = [UnitGroup(name, len(score), (), min_keep=0) for name, score in scores.items()]
        chosen = keep_top(scores, groups, Budget(limit=self.active))
        for index, (parameter, options) in enumerate(moved):
            gradient = parameter.grad.masked_fill(~chosen[str(index)].view(parameter.shape), 0)
            gradient = gradient.add(parameter, alpha=options["weight_decay"])
            state = self.state[parameter]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(options["momentum"]).add_(gradient)
            else:
                state["momentum_buffer"] = gradient.clone()
            parameter.add_(state["momentum_buffer"], alpha=-options["lr"])
        return loss


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of an optimiser's step returns, with gradients; None where there is no closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _energies(tensors: Tensors, group: UnitGroup) -> Tensor:
    return fold({m.param: tensors[m.param].square() for m in group.members if m.param in tensors}, group)


def _known(groups: Sequence[UnitGroup], tensors: Tensors) -> tuple[UnitGroup, ...]:
    """The groups with the members that are among the tensors: the others are buffers, or frozen."""
    return tuple(replace(g, members=tuple(m for m in g.members if m.param in tensors)) for g in groups)


def _of_units(tensors: Tensors, groups: Sequence[UnitGroup]) -> dict[str, Tensor]:
    return {m.param: tensors[m.param] for group in groups for m in group.members if m.param in tensors}


def _owned(member: Any, tensor: Tensor) -> Tensor | float:
    """0 where no unit owns a row, as `spread` says 1 there."""
    if member.rows is None:
        return 1.0
    ones = torch.ones(len(member.rows), dtype=tensor.dtype, device=tensor.device)
    return 1 - spread(torch.zeros_like(ones), member, tensor)


def _root(values: Tensor) -> Tensor:
    """Square roots, with the gradient 0 at 0."""
    positive = values > 0
    return torch.where(
        positive, torch.where(positive, values, torch.ones_like(values)).sqrt(), torch.zeros_like(values)
    )


def _sum(parts: Any) -> Tensor:
    found = list(parts)
    if not found:
        raise ValueError("there is nothing to penalise: no groups, or no weights of two dimensions")
    return torch.stack([part.to(found[0].device) for part in found]).sum()
