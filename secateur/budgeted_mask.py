"""Hard concrete gates whose expected cost is a given share of the whole at every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.allocation import UNITS, unit_costs
from secateur.masks import HardConcrete
from secateur.units import UnitGroup

_HALVINGS = 60
_FAR = 40.0
"""Logits that far from 0 are certain."""


class BudgetedConcrete(HardConcrete):
    """Hard concrete gates, all of whose logits are shifted by the one b with which the expected cost is the budget.

    Louizos et al. 2018 (arXiv 1712.01312) add the expected cost to the loss, times a weight; which cost comes out
    depends on that weight and on the scale of the loss. Here r(logits - b) = share defines b, and by the implicit
    function theorem db/dlogit_i = c_i p_i' / sum of c p': the gradient of the loss gets the Lagrange multiplier that
    the budget has at that point, and no weight is left to choose. Units that the loss does not feel sink, as the
    others rise.

    Args:
        groups: the units.
        cost: name of a cost of all groups, or "units".
        beta, gamma, zeta, initial, seed, eps: as for `HardConcrete`.

    Raises:
        ValueError: an option is out of range, or a group lacks the cost.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        cost: str = UNITS,
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        initial: float = 3.0,
        seed: int = 0,
        eps: float = 0.0,
    ) -> None:
        super().__init__(groups, beta, gamma, zeta, initial, seed, eps)
        costs = torch.cat([unit_costs(group, cost) for group in groups])
        if not float(costs.sum()):
            raise ValueError(f"no unit of {[group.name for group in groups]} has a cost {cost!r} above 0")
        self._shares = costs / costs.sum()
        self.first_share = min(float(self.probability(torch.tensor(float(initial)))), 1 - 1e-6)
        self.share = self.first_share

    def hold(self, share: float) -> None:
        """From now on the expected cost is this share of the whole.

        Raises:
            ValueError: the share is not above 0, or not below 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"an expected share lies between 0 and 1, got {share}")
        self.share = share

    def shift(self) -> Float[Tensor, ""]:
        """b, differentiable by the logits."""
        logits = torch.cat([*self.logits])
        shares = self._shares.to(logits.device)
        with torch.no_grad():
            wide = logits.double()
            low, high = wide.min() - _FAR, wide.max() + _FAR
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                more = (shares * self.probability(wide - middle)).sum() > self.share
                low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        chances = self.probability(logits - high.to(logits))
        weights = shares.to(logits)
        with torch.no_grad():
            slope = (weights * chances * (1 - chances)).sum().clamp_min(torch.finfo(logits.dtype).tiny)
        moved = (weights * chances).sum()
        return high.to(logits) + (moved - moved.detach()) / slope

    def forward(self) -> dict[str, Tensor]:
        """Group name -> (size,) mask for `target.masked(...)`."""
        shift = self.shift()
        return {group.name: self.gate(each - shift) for group, each in zip(self.groups, self.logits, strict=True)}

    @torch.no_grad()
    def settle(self) -> None:
        """Write the shift into the logits, which then are those of the gates; the masks stay what they are."""
        shift = self.shift()
        for logits in self.logits:
            logits.sub_(shift)
