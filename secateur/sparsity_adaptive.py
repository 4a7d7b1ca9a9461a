"""How much may go, told from how unequal the weights are: no budget is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.harness.reports import pq_index
from secateur.maths import topk_mask
from secateur.units import Keep, Scores


@dataclass(frozen=True)
class SparsityAdaptive:
    """Prune floor(d min(gamma (1 - r / d), beta)) of d entries, r = d (1 + eta)^(-q / (q - p)) (1 - I)^(p q / (q - p)).

    Sparsity-informed adaptive pruning (SAP, Diao et al. 2023, arXiv 2302.05601, section 3): I is the PQ index
    (`secateur.harness.reports.pq_index`) of what is left, and r a lower bound of how many entries have to stay. A round
    of it takes the place of the fixed share of lottery tickets; where entries are all of one size nothing goes.

    Args:
        p, q: of the index, 0 < p < q.
        eta: how much of the smaller entries may be lost: the larger, the more goes.
        gamma: scales the share; above 1 prunes faster.
        beta: the largest share of a round, at most 1.
        by_group: an index and a count for each group; else one for all groups, whose entries compete.

    Raises:
        ValueError: an option is out of range.
    """

    p: float = 0.5
    q: float = 1.0
    eta: float = 0.0
    gamma: float = 1.0
    beta: float = 0.9
    by_group: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.p < self.q or self.eta < 0 or self.gamma < 0 or not 0 <= self.beta <= 1:
            raise ValueError(
                "0 < p < q, eta >= 0, gamma >= 0 and beta in [0, 1] are needed, got "
                f"{self.p}, {self.q}, {self.eta}, {self.gamma} and {self.beta}"
            )

    def round(self, sizes: Scores, keep: Keep | None = None) -> Keep:
        """What stays after one more round.

        Args:
            sizes: group name -> (size,) magnitudes, not negative: of weights, or any score.
            keep: what the last round left; None: everything.

        Raises:
            ValueError: a size is NaN, infinite or negative, or `keep` lacks a group.
        """
        for name, size in sizes.items():
            if not bool(torch.isfinite(size).all()) or bool((size < 0).any()):
                raise ValueError(f"sizes of group {name!r} must be finite and not negative")
            if keep is not None and (name not in keep or keep[name].shape != size.shape):
                raise ValueError(f"keep has no mask of {len(size)} units for group {name!r}")
        left = {name: torch.ones_like(s, dtype=torch.bool) if keep is None else keep[name] for name, s in sizes.items()}
        if self.by_group:
            return {name: self._best(size, left[name]) for name, size in sizes.items()}
        device = next(iter(sizes.values())).device
        whole = self._best(*(torch.cat([part.to(device) for part in parts.values()]) for parts in (sizes, left)))
        parts = whole.split([len(size) for size in sizes.values()])
        return {name: part.to(size.device) for (name, size), part in zip(sizes.items(), parts, strict=True)}

    def pruned(self, sizes: Tensor) -> int:
        """How many of these entries a round removes."""
        if not len(sizes):
            return 0
        index = pq_index(sizes, self.p, self.q)
        retained = index.retained * (1 + self.eta) ** (-self.q / (self.q - self.p))
        return math.floor(len(sizes) * min(self.gamma * (1 - retained / len(sizes)), self.beta) * (1 + 1e-12))

    def _best(self, sizes: Tensor, left: Tensor) -> Tensor:
        count = int(left.sum()) - self.pruned(sizes[left])
        return topk_mask(sizes.masked_fill(~left, -torch.inf), count)
