"""A trainable mask of noise: what the task needs is heard through it, the rest drowns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from secateur.masks import TrainableMask
from secateur.units import UnitGroup


class BottleneckMask(TrainableMask):
    """z = mu + sigma eps, with eps ~ N(0, 1) in training and 0 in evaluation: a variational information bottleneck.

    VTrans (Dutta et al. 2024, arXiv 2406.05276): the penalty is 0.5 log(1 + mu^2 / sigma^2) of each unit, weighted by
    its cost; it is the least KL divergence of N(mu, sigma^2) from any N(0, v). A unit goes where log(sigma^2 / mu^2)
    exceeds a threshold. The penalty knows mu and sigma by their ratio alone, so the logit here is log(mu^2 / sigma^2)
    and mu is a parameter beside it: z = mu (1 + e^(-logit / 2) eps). One eps is drawn for a unit and a forward pass,
    not for each sample.

    In evaluation mode a new mask is exactly 1. Kept units have mu in the end, which belongs into their weights.

    Args:
        groups: the units.
        threshold: log(sigma^2 / mu^2) above which a unit goes; 0 is a choice.
        initial: first logit; 9 is a noise of 1 %.
        seed: of the noise.
    """

    def __init__(
        self, groups: Sequence[UnitGroup], threshold: float = 0.0, initial: float = 9.0, seed: int = 0
    ) -> None:
        super().__init__(groups, initial)
        self.threshold = threshold
        self.means = nn.ParameterList(torch.ones_like(logits) for logits in self.logits)
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self) -> dict[str, Tensor]:
        """Group name -> (size,) mask for `target.masked(...)`; of any size and sign."""
        return {name: mean * gate for (name, gate), mean in zip(super().forward().items(), self.means, strict=True)}

    def gate(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        if not self.training:
            return torch.ones_like(logits)
        noise = torch.randn(logits.shape, generator=self.generator, dtype=torch.float64).to(logits)
        return 1 + torch.exp(-logits / 2) * noise

    def probability(self, logits: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """mu^2 / (mu^2 + sigma^2): how much of what comes out is signal."""
        return torch.sigmoid(logits)

    def charges(self) -> list[Float[Tensor, " size"]]:
        """0.5 log(1 + mu^2 / sigma^2), in nats, group by group."""
        return [0.5 * functional.softplus(logits) for logits in self.logits]

    def stays(self, logits: Float[Tensor, " size"]) -> Bool[Tensor, " size"]:
        return logits > -self.threshold

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())
