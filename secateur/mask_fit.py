"""One loop that trains any mask: the task's loss under the mask, and something that brings it to the budget.

mask = HardConcrete(network.groups())
fit(MaskFit(network, mask, loss, AugmentedLagrangian(0.5)), batches, steps=500)
small = network.cut(mask.keep(Budget(share=0.5)))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.masks import TrainableMask
from secateur.transport_mask import TransportMask

Kept = Callable[[Mapping[str, Tensor]], Float[Tensor, ""]]
"""Masks by group -> the share of a cost that they keep, 1 where all are 1."""


class Constraint(nn.Module, ABC):
    """What the share of the cost that a mask keeps adds to the loss."""

    @abstractmethod
    def forward(self, kept: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The term, differentiable in `kept`."""

    def update(self, kept: float) -> None:
        """Called after each step with what that step's mask kept."""


class Penalty(Constraint):
    """weight * kept: the smaller the better, without a goal."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = weight

    def forward(self, kept: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self.weight * kept


class TwoSided(Constraint):
    """weight * P, P = (F - T) / (1 - T) where F > T, else 1 - F / T: 0 at the goal alone, 1 at everything and nothing.

    AutoBot (Castells and Yeom, arXiv 2111.09635), in whose released code the weight is 7, F counts multiply-adds
    (`secateur.surgery.soft_cost.soft_macs`), gates are sigmoids, weights are frozen, and the rate is 0.3.

    Args:
        share: T, between 0 and 1.
        weight: of P.
    """

    def __init__(self, share: float, weight: float = 7.0) -> None:
        super().__init__()
        _check(share, weight)
        self.share, self.weight = share, weight

    def forward(self, kept: Float[Tensor, ""]) -> Float[Tensor, ""]:
        above = (kept - self.share) / (1 - self.share)
        return self.weight * torch.where(kept > self.share, above, 1 - kept / self.share)


class AugmentedLagrangian(Constraint):
    """(max(0, lambda + rho g)^2 - lambda^2) / (2 rho), g = kept - share, and lambda <- max(0, lambda + rho g).

    The method of multipliers for the inequality g <= 0 (Nocedal and Wright, Numerical Optimization, 2006, chapter 17):
    lambda grows while too much is kept, and finds the price that the budget has; no weight is to be chosen.

    Args:
        share: the most that may be kept, between 0 and 1.
        rho: how fast the price rises, above 0.
        every: steps between updates of lambda.
    """

    price: Tensor
    steps: Tensor

    def __init__(self, share: float, rho: float = 1.0, every: int = 1) -> None:
        super().__init__()
        _check(share, rho)
        if every < 1 or rho == 0:
            raise ValueError(f"every >= 1 and rho > 0 are needed, got {every} and {rho}")
        self.share, self.rho, self.every = share, rho, every
        self.register_buffer("price", torch.zeros((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, kept: Float[Tensor, ""]) -> Float[Tensor, ""]:
        price = self.price.to(kept)
        reached = (price + self.rho * (kept - self.share)).clamp_min(0)
        return (reached.square() - price.square()) / (2 * self.rho)

    def update(self, kept: float) -> None:
        self.steps += 1
        if int(self.steps) % self.every == 0:
            self.price.copy_((self.price + self.rho * (kept - self.share)).clamp_min(0))


class MaskFit(lightning.LightningModule):
    """Trains a mask for `secateur.training.fit` or any Lightning trainer; the target's weights stand still.

    Args:
        target: runs under the mask; in the mode, training or evaluation, in which it is.
        mask: what is trained; it is all of this module's state, with the constraint's.
        loss: (target, batch) -> the task's loss, computed inside the mask.
        constraint: what brings it to the budget; None: nothing, for masks that meet one by themselves.
        kept: masks -> share of the cost that is kept; None: what `mask.penalty(cost)` says.
        cost: name of the cost for `mask.penalty`.
        rate: Adam's.
        held_out: batches to validate on, for `fit(..., validate_every=...)`.
    """

    score_name = "-loss"

    def __init__(
        self,
        target: Any,
        mask: TrainableMask,
        loss: Callable[[Any, Any], Tensor],
        constraint: Constraint | None = None,
        *,
        kept: Kept | None = None,
        cost: str = "units",
        rate: float = 0.1,
        held_out: Sequence[Any] = (),
    ) -> None:
        super().__init__()
        if not rate > 0:
            raise ValueError(f"rate must be above 0, got {rate}")
        # In a tuple, it is no submodule: not saved, not trained.
        self._target = (target,)
        self.mask, self.loss, self.constraint = mask, loss, constraint
        self.kept, self.cost, self.rate, self.held_out = kept, cost, rate, held_out
        self._last = 1.0

    def training_step(self, batch: Any, step: int) -> Tensor:
        """The task's loss under the mask, and the constraint's term."""
        target = self._target[0]
        masks = self.mask()
        with _frozen(target.tensors().values()), target.masked(masks):
            task = self.loss(target, batch)
        if self.constraint is None:
            return task
        share = self.mask.penalty(self.cost) if self.kept is None else self.kept(masks)
        self._last = float(share.detach())
        return task + self.constraint(share.to(task))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The constraint learns what was kept, and a transport mask cools."""
        if self.constraint is not None:
            self.constraint.update(self._last)
        if isinstance(self.mask, TransportMask):
            self.mask.cool()

    def validation_score(self) -> float:
        """Minus the mean loss on the batches held out, the constraint's term included.

        Raises:
            ValueError: there are none.
        """
        if not len(self.held_out):
            raise ValueError("validation needs batches that are held out: give held_out")
        return -sum(float(self.training_step(batch, 0)) for batch in self.held_out) / len(self.held_out)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the mask's parameters."""
        return torch.optim.Adam(self.mask.parameters(), lr=self.rate)


@contextmanager
def _frozen(tensors: Iterable[Tensor]) -> Iterator[None]:
    """While the context is open, leaves require no gradients: the weights stand still."""
    leaves = [tensor for tensor in tensors if tensor.requires_grad and tensor.is_leaf]
    try:
        for tensor in leaves:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in leaves:
            tensor.requires_grad_(True)


def _check(share: float, weight: float) -> None:
    if not 0 < share < 1 or weight < 0:
        raise ValueError(f"share between 0 and 1, and a weight of at least 0, are needed, got {share} and {weight}")
