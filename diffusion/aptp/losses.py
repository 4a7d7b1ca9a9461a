"""What APTP's router is trained on, beside denoising and distillation: cost, and that similar prompts go together."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def resource_loss(ratios: Float[Tensor, " N"], share: float) -> Float[Tensor, ""]:
    """|log(mean ratio / share)|: 0 where the samples' experts cost the share in the mean (arXiv 2406.12042).

    Args:
        ratios: multiply-adds of each sample's architecture over those of the whole network, above 0.
        share: p, the goal.
    """
    return (ratios.mean() / share).log().abs()


def contrastive_loss(
    embeddings: Float[Tensor, "N width"], architectures: Float[Tensor, "N D"], temperature: float = 0.03
) -> Float[Tensor, ""]:
    """Binary cross-entropy between softmaxed cosine similarities of prompts and of their architectures.

    APTP (arXiv 2406.12042): architectures shall be alike where prompts are. Every row of either matrix is a
    distribution over the batch; only the architectures learn.

    Args:
        embeddings: of the prompts.
        architectures: of the same prompts, as `Layout.features` has them.
        temperature: of both softmaxes.
    """
    prompts, theirs = (
        torch.log_softmax(each @ each.T / temperature, dim=1)
        for each in (functional.normalize(values.double(), dim=1) for values in (embeddings.detach(), architectures))
    )
    # From logarithms: rounded to 0, the chance of a far architecture would have no gradient to come nearer by.
    theirs = theirs.clamp(max=-1e-12)
    wanted = prompts.exp()
    entropies = wanted * theirs + (1 - wanted) * torch.log(-torch.expm1(theirs))
    return -entropies.mean().to(architectures)


def spread_loss(ratios: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Minus the standard deviation of the samples' costs: experts shall differ."""
    return -(ratios.var(correction=0) + 1e-12).sqrt()


def headroom_loss(ratios: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """1 - the greatest of the samples' costs: some expert shall be nearly whole."""
    return 1 - ratios.max()


@dataclass(frozen=True)
class LossWeights:
    """Of the parts of the loss; the denoising loss has 1. Defaults are those of the shipped models.

    Args:
        output: the network's outputs against the whole network's.
        blocks: outputs of its blocks against those of the whole network's; 0 for networks without blocks.
        resource: see `resource_loss`.
        contrastive: see `contrastive_loss`.
        spread: see `spread_loss`.
        headroom: see `headroom_loss`.

    Raises:
        ValueError: a weight is negative.
    """

    output: float = 0.2
    blocks: float = 0.2
    resource: float = 2.0
    contrastive: float = 100.0
    spread: float = 0.1
    headroom: float = 0.1

    def __post_init__(self) -> None:
        negative = [each.name for each in fields(self) if getattr(self, each.name) < 0]
        if negative:
            raise ValueError(f"the weight of {negative[0]} must not be negative, got {getattr(self, negative[0])}")
