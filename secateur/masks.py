"""Trainable masks: how strongly each unit acts, learned with the rest and then hardened into which units stay.

All have one face. A mask is trained through `target.masked(mask())` on `task loss + weight * mask.penalty()`, and ends
in `target.cut(mask.keep(budget))`:

- `StraightThrough`: 0 or 1 by a threshold, with the gradient of a sigmoid;
- `HardConcrete`: random in [0, 1] with mass at both ends, so that the expected count has a gradient;
- `Sigmoid`: soft, and only hard once it is hardened.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.allocation import UNITS, Budget, allocate, unit_costs
from secateur.maths import straight_through, topk_mask
from secateur.units import Keep, UnitGroup


class TrainableMask(nn.Module, ABC):
    """One logit a unit, and what becomes of it.

    Args:
        groups: the units; every group has some.
        initial: the logit that every unit starts with.
    """

    def __init__(self, groups: Sequence[UnitGroup], initial: float) -> None:
        super().__init__()
        empty = [group.name for group in groups if not group.size]
        if empty or not groups:
            raise ValueError(f"a mask needs groups that have units; without are {empty or 'all: no group is given'}")
        self.groups = tuple(groups)
        # A list: names of groups may hold dots, which a ParameterDict refuses.
        self.logits = nn.ParameterList(torch.full((group.size,), float(initial)) for group in groups)

    @abstractmethod
    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """How strongly units act, in [0, 1]: differentiable, and deterministic in evaluation mode."""

    @abstractmethod
    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """How likely units are to stay, in [0, 1], differentiable and deterministic: what the penalty counts."""

    @abstractmethod
    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        """Which units stay where there is no budget."""

    def forward(self) -> dict[str, Tensor]:
        """Group name -> (size,) mask for `target.masked(...)`."""
        return {group.name: self.gate(logits) for group, logits in zip(self.groups, self.logits, strict=True)}

    def charges(self) -> list[Float[Tensor, " size"]]:
        """What each unit counts in the penalty, group by group, for its cost: how likely it is to stay."""
        return [self.probability(logits) for logits in self.logits]

    def penalty(self, cost: str = UNITS) -> Float[Tensor, ""]:
        """The expected share of the cost that is kept, 0 to 1: add it to the loss, times a weight.

        Args:
            cost: name of a cost of all groups, or "units".

        Raises:
            ValueError: a group lacks that cost, or all of it is 0.
        """
        costs = [unit_costs(group, cost) for group in self.groups]
        whole = sum(float(each.sum()) for each in costs)
        if not whole:
            raise ValueError(f"no unit of {[group.name for group in self.groups]} has a cost {cost!r} above 0")
        parts = [(charge * (each / whole).to(charge)).sum() for charge, each in zip(self.charges(), costs, strict=True)]
        return torch.stack([part.to(parts[0].device) for part in parts]).sum()

    @torch.no_grad()
    def keep(self, budget: Budget | None = None) -> Keep:
        """Which units stay: by the mask's own rule, or the best that a budget holds, exactly.

        Each group keeps at least its `min_keep` best units.

        Args:
            budget: how much may stay (see `secateur.allocation.allocate`, the logits being the scores); None leaves it
                to what was learned.

        Raises:
            ValueError: the floors exceed the budget, or a logit is NaN.
        """
        scores = {group.name: logits.detach() for group, logits in zip(self.groups, self.logits, strict=True)}
        if budget is not None:
            return allocate(scores, self.groups, budget)
        return {
            group.name: self.stays(scores[group.name]) | topk_mask(scores[group.name], min(group.min_keep, group.size))
            for group in self.groups
        }


class StraightThrough(TrainableMask):
    """1[sigmoid(m) > threshold] with the gradient of sigmoid(m); the penalty is the mean of sigmoid(m).

    Compact 3D Gaussian Representation (Lee et al. 2024, arXiv 2311.13681), with the defaults of its
    released code: logits start at 1, their learning rate is 0.01, the penalty weighs 0.0005. At the start the mask is
    all ones.

    Args:
        groups: the units.
        threshold: epsilon of the paper; a unit goes when its sigmoid falls to it.
        initial: first logit; above logit(threshold), so that everything is kept.
    """

    def __init__(self, groups: Sequence[UnitGroup], threshold: float = 0.01, initial: float = 1.0) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        super().__init__(groups, initial)
        self.threshold = threshold

    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return straight_through(self.stays(logits).to(logits.dtype), torch.sigmoid(logits))

    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return torch.sigmoid(logits)

    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        return torch.sigmoid(logits) > self.threshold


class HardConcrete(TrainableMask):
    """The hard concrete gate (Louizos et al. 2018, arXiv 1712.01312): its expected count of nonzeros has a closed form.

    In training z = clamp(s (zeta - gamma) + gamma, 0, 1) with s = sigmoid((log u - log(1 - u) + logit) / beta) and u
    uniform; the penalty counts P(z > 0) = sigmoid(logit - beta log(-gamma / zeta)). In evaluation mode z =
    clamp(sigmoid(logit) (zeta - gamma) + gamma, 0, 1), and units with z > 0 stay; between 0 and 1, z belongs into the
    weights of the unit after the cut. With the default `initial` z is 1 in evaluation mode, and in training for four
    units of five.

    The noise comes from the mask's own generator on the CPU, whatever the device; its state is part of `state_dict`, so
    that a resumed run draws what the uninterrupted one would have drawn.

    Args:
        groups: the units.
        beta: temperature, above 0.
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end of the stretched interval, above 1.
        initial: first logit.
        seed: the same seed gives the same masks.
        eps: added to u and to 1 - u, which holds the noise within log((1 + eps) / eps). 0 is the paper's; the penalty
            counts as if it were 0, since probabilities that reach 1 have no gradient.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        initial: float = 3.0,
        seed: int = 0,
        eps: float = 0.0,
    ) -> None:
        if not (beta > 0 and gamma < 0 and zeta > 1 and eps >= 0):
            raise ValueError(
                f"beta > 0, gamma < 0, zeta > 1 and eps >= 0 are needed, got {beta}, {gamma}, {zeta} and {eps}"
            )
        super().__init__(groups, initial)
        self.beta, self.gamma, self.zeta, self.eps = beta, gamma, zeta, eps
        self.generator = torch.Generator().manual_seed(seed)

    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        if not self.training:
            return self._stretched(torch.sigmoid(logits))
        uniform = torch.rand(logits.shape, generator=self.generator, dtype=torch.float64).clamp_(1e-9, 1 - 1e-9)
        noise = torch.logit((uniform + self.eps) / (1 + 2 * self.eps)).to(logits)
        return self._stretched(torch.sigmoid((noise + logits) / self.beta))

    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return torch.sigmoid(logits - self.beta * math.log(-self.gamma / self.zeta))

    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        return self._stretched(torch.sigmoid(logits)) > 0

    def _stretched(self, concrete: Tensor) -> Tensor:
        return (concrete * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())


class Sigmoid(TrainableMask):
    """sigmoid(m): a deterministic soft gate, the same in training and evaluation.

    It is never exactly 1 or 0: multiply the gates of the kept units into their weights, or fine-tune after the cut.

    Args:
        groups: the units.
        threshold: units whose gate is above it stay.
        initial: first logit; 5 opens the gates to 0.993.
    """

    def __init__(self, groups: Sequence[UnitGroup], threshold: float = 0.5, initial: float = 5.0) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
        super().__init__(groups, initial)
        self.threshold = threshold

    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return torch.sigmoid(logits)

    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return torch.sigmoid(logits)

    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        return torch.sigmoid(logits) > self.threshold
