"""A trainable mask that meets its budget at every step, because it is an optimal transport plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.masks import TrainableMask
from secateur.maths import topk_mask
from secateur.solvers.transport import soft_topk
from secateur.units import UnitGroup


class TransportMask(TrainableMask):
    """Soft top-k of trainable scores: in [0, 1], of a sum that is exactly the budget of each group.

    Differentiable Transportation Pruning (Li et al., arXiv 2307.08483): scores of mass 1/n are carried to the targets 0
    and 1, of masses 1 - k/n and k/n, with entropy; the mask is what arrives at 1 (see `soft_topk`, which solves the
    plan instead of iterating towards it). No penalty is needed, and `penalty()` is constant.

    The paper takes one proximal Sinkhorn step a minibatch, by which the temperature falls on its own: t steps of the
    proximal point method at a constant cost are one plan at temperature / t. `cool()` does that to the temperature
    here. The first temperature is not the paper's but a choice: in the unit of the squared scores.

    Args:
        groups: the units.
        share: 0 to 1 of each group's units: floor(share * size) of them.
        temperature: of the entropy before the first `cool()`.
        initial: first score of all units; only differences count.

    Raises:
        ValueError: share or temperature is out of range, or a group's floor exceeds its share.
    """

    steps: Tensor

    def __init__(
        self, groups: Sequence[UnitGroup], share: float, temperature: float = 1.0, initial: float = 0.0
    ) -> None:
        super().__init__(groups, initial)
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {share}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.share = share
        self.first_temperature = temperature
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for group in groups:
            if self.count(group.size) < min(group.min_keep, group.size):
                raise ValueError(
                    f"a share of {share} keeps {self.count(group.size)} of the {group.size} units of group "
                    f"{group.name!r}, whose floor is {group.min_keep}"
                )

    def count(self, size: int) -> int:
        """How many of so many units stay."""
        return min(size, int(self.share * size * (1 + 1e-12)))

    @property
    def temperature(self) -> float:
        """What the entropy weighs now."""
        return self.first_temperature / (1 + int(self.steps))

    def cool(self) -> None:
        """A step of the proximal point method: call it once a minibatch. It is part of the state dict."""
        self.steps += 1

    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return soft_topk(logits, self.count(len(logits)), self.temperature)

    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        return self.gate(logits)

    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        return topk_mask(logits, self.count(len(logits)))
