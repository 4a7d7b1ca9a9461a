"""Token merging: alike patches become one, and attention counts it as often as it has members. No training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vit.tokens.costs import LayerCost
from vit.tokens.pruner import Choice, TokenPruner, Tokens, with_prefix
from vit.tokens.reduction import Reduction


@dataclass(frozen=True)
class TokenMerging(TokenPruner):
    """ToMe (Bolya et al. 2023, arXiv 2210.09461): bipartite soft matching.

    Patches are dealt in turn to two sets. Each patch of the first proposes an edge to the patch of the second whose
    mean key is most like its own (cosine); the best edges are taken, and what they join becomes the mean, weighted by
    sizes. One step merges at most half of the patches. What is left stays in the order of the image.

    Args:
        proportional: add the log of each token's size to the attention it gets (section 3). The authors merge so
            models trained with labels, and those that they train on; not masked autoencoders off the shelf.
    """

    proportional: bool = True
    needs_keys = True

    def choose(self, tokens: Tokens, keep: int) -> Choice:
        """Merge the most alike patches until `keep` are left; padding is merged first, and only with padding."""
        assert tokens.keys is not None
        return Choice(match_patches(tokens.keys, keep, tokens.prefix, tokens.sizes, tokens.valid))

    def fewest(self, patches: int) -> int:
        """The patches of the second set, and those of the first that have no partner."""
        return patches - patches // 2

    def macs(self, patches: int, keep: int, layer: LayerCost) -> int:
        """The likenesses between the two sets."""
        return (patches - patches // 2) * (patches // 2) * layer.head_width


def match_patches(
    metric: Float[Tensor, "batch tokens channels"],
    keep: int,
    prefix: int = 0,
    sizes: Float[Tensor, "batch tokens"] | None = None,
    valid: Bool[Tensor, "batch tokens"] | None = None,
) -> Reduction:
    """The merge that leaves `keep` patches (arXiv 2210.09461, section 3, "Bipartite Soft Matching").

    Args:
        metric: what makes tokens alike, in the sense of the cosine.
        keep: patches that are left, from half of them, rounded up, to all.
        prefix: tokens in front that stay as they are.
        sizes: (batch, tokens) weights of the mean; None: 1 each.
        valid: (batch, tokens) False for padding.

    Raises:
        ValueError: `keep` is out of range.
    """
    batch, tokens, _ = metric.shape
    patches = tokens - prefix
    count = patches - keep
    if not 0 <= count <= patches // 2:
        raise ValueError(f"one merge leaves {patches - patches // 2} to {patches} of {patches} patches, not {keep}")
    directions = F.normalize(metric.detach()[:, prefix:].float(), dim=-1)
    likeness = directions[:, 0::2] @ directions[:, 1::2].transpose(1, 2)
    if valid is not None:
        likeness = _padding_first(likeness, valid[:, prefix:])
    best, partner = likeness.max(dim=-1)
    order = best.sort(dim=1, descending=True, stable=True).indices
    merged = order[:, :count]
    target = 2 * partner.gather(1, merged) + 1
    holder = torch.arange(patches, device=metric.device).expand(batch, -1).scatter(1, 2 * merged, target)
    kept = torch.cat([2 * order[:, count:], _odd(patches, batch, metric.device)], dim=1).sort(dim=1).values
    place = Reduction(tokens, with_prefix(kept, prefix)).owners
    into = place.gather(1, with_prefix(holder, prefix))
    counted = Reduction(tokens, with_prefix(kept, prefix), into)
    return Reduction(tokens, counted.kept, into, _shares(counted, sizes, metric))


def merge_closures(
    metric: Float[Tensor, "batch tokens channels"],
    keep: int,
    prefix: int = 0,
    sizes: Float[Tensor, "batch tokens"] | None = None,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(merge, unmerge) for a layer that has to give back as many tokens as it was given, in their order.

    `merge` takes (batch, tokens, width) to (batch, prefix + keep, width); `unmerge` copies each of those to all the
    tokens that it was made of. Arguments and errors are those of `match_patches`.
    """
    reduction = match_patches(metric, keep, prefix, sizes)
    return reduction.apply, reduction.restore


def _shares(reduction: Reduction, sizes: Tensor | None, like: Tensor) -> Tensor:
    """(batch, tokens) each token's share of the mean that it goes into; padding, of size 0, has none."""
    before = like.new_ones(like.shape[:2]) if sizes is None else sizes
    after = reduction.total(before).gather(1, reduction.owners)
    return before / after.clamp_min(torch.finfo(after.dtype).tiny)


def _padding_first(likeness: Tensor, valid: Tensor) -> Tensor:
    first, second = valid[:, 0::2, None], valid[:, None, 1::2]
    likeness = likeness.masked_fill(first != second, -torch.inf)
    return likeness.masked_fill(~first & ~second, torch.inf)


def _odd(patches: int, batch: int, device: torch.device) -> Tensor:
    return torch.arange(1, patches, 2, device=device).expand(batch, -1)
