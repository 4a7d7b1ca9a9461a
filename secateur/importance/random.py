"""Random importance: the baseline that every other criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.units import Prunable, Scores


@dataclass(frozen=True)
class Random:
    """Scores drawn uniformly from [0, 1), so that an allocator keeps a random subset of the exact size.

    Random pruning is a strong baseline (Liu et al., The Unreasonable Effectiveness of Random Pruning, arXiv
    2202.02643).

    Args:
        seed: the same seed gives the same scores for groups of the same sizes.
    """

    seed: int = 0

    def score(self, target: Prunable, calibration: object = None) -> Scores:
        """(size,) float64 scores of each group; the calibration is not used."""
        generator = torch.Generator().manual_seed(self.seed)
        return {g.name: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in target.groups()}
