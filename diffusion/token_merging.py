"""Token merging for diffusion: alike tokens are merged before self-attention, and copied back behind it. No training.

Bolya and Hoffman 2023, Token Merging for Fast Stable Diffusion (arXiv 2303.17604). It stacks with any pruning of the
same network, and is what a pruned model has to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion.steps import replaced_forward


@dataclass(frozen=True, slots=True)
class Merge:
    """Which tokens are merged into which: a bipartite matching.

    Args:
        kept: (batch, kept) source tokens that stay themselves.
        merged: (batch, merged) source tokens that are merged away.
        into: (batch, merged) the destination of each, an index into `destinations`.
        destinations: (destinations,) tokens that take others in.
        tokens: how many there are.
    """

    kept: Int64[Tensor, "batch kept"]
    merged: Int64[Tensor, "batch merged"]
    into: Int64[Tensor, "batch merged"]
    destinations: Int64[Tensor, " destinations"]
    tokens: int

    def merge(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch fewer width"]:
        """The kept tokens, then the destinations, each the mean of itself and what is merged into it."""
        width = x.shape[-1]
        targets = x[:, self.destinations]
        taken = x.gather(1, self.merged[..., None].expand(-1, -1, width))
        index = self.into[..., None].expand(-1, -1, width)
        targets = targets.scatter_reduce(1, index, taken, reduce="mean", include_self=True)
        return torch.cat([x.gather(1, self.kept[..., None].expand(-1, -1, width)), targets], dim=1)

    def unmerge(self, y: Float[Tensor, "batch fewer width"]) -> Float[Tensor, "batch tokens width"]:
        """Every token again: one that was merged gets what its destination became."""
        batch, _, width = y.shape
        stayed, targets = y.split([self.kept.shape[1], len(self.destinations)], dim=1)
        copied = targets.gather(1, self.into[..., None].expand(-1, -1, width))
        out = y.new_empty(batch, self.tokens, width)
        places = torch.cat([self.kept, self.destinations.expand(batch, -1), self.merged], dim=1)
        return out.scatter(1, places[..., None].expand(-1, -1, width), torch.cat([stayed, targets, copied], dim=1))


def match_tokens(
    x: Float[Tensor, "batch tokens width"], destinations: Int64[Tensor, " destinations"], count: int
) -> Merge:
    """Merge the `count` source tokens that are most like a destination (arXiv 2303.17604, section 3).

    Likeness is the cosine. Every token that is no destination is a source, and goes to the destination most like it.

    Args:
        x: tokens.
        destinations: indices of the tokens that take others in.
        count: at most as many as there are sources.
    """
    tokens = x.shape[1]
    is_source = torch.ones(tokens, dtype=torch.bool, device=x.device)
    is_source[destinations] = False
    sources = is_source.nonzero()[:, 0]
    with torch.no_grad():
        directions = F.normalize(x.float(), dim=-1)
        likeness, nearest = (directions[:, sources] @ directions[:, destinations].transpose(1, 2)).max(dim=-1)
        order = likeness.argsort(dim=-1, descending=True, stable=True)
    merged, kept = order[:, :count], order[:, count:].sort(dim=-1).values
    return Merge(sources[kept], sources[merged], nearest.gather(1, merged), destinations, tokens)


def grid_destinations(
    height: int, width: int, stride: int = 2, generator: torch.Generator | None = None
) -> Int64[Tensor, " destinations"]:
    """One token of each `stride` x `stride` cell of a grid, row by row: the first, or a random one.

    Cells at the edge that are cut off count as cells.

    Args:
        height: rows of tokens.
        width: tokens in a row.
        stride: tokens along the side of a cell.
        generator: draws the random ones, on the CPU; None takes the first of each cell.
    """
    top, left = torch.meshgrid(torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij")
    if generator is not None:
        down, right = torch.randint(stride, (2, *top.shape), generator=generator)
        top, left = torch.minimum(top + down, _last(height)), torch.minimum(left + right, _last(width))
    return (top * width + left).flatten()


def _last(size: int) -> Tensor:
    return torch.tensor(size - 1)


@contextmanager
def token_merging(
    denoiser: nn.Module,
    ratio: float = 0.5,
    stride: int = 2,
    max_downsample: int = 1,
    seed: int | None = None,
) -> Iterator[None]:
    """While the context is open, the self-attention of the largest token grids sees fewer tokens.

    Token merging (Bolya and Hoffman 2023, arXiv 2303.17604): alike ones are averaged before it, and copied behind it.
    Tokens are compared as the attention gets them, behind the norm; the authors' code compares them in front of it.

    Args:
        denoiser: a UNet or transformer of diffusers whose blocks call their self-attention `attn1`; any sampler or
            pipeline may call it with latents (batch, channels, height, width).
        ratio: share of the tokens that is merged away, at most 1 - 1 / stride^2; 0 changes nothing.
        stride: side of the cells of which one token each takes others in.
        max_downsample: how many times coarser than the finest grid of self-attention one may be that is still merged.
            The authors' code counts from the latents: in networks that attend to coarser grids alone it merges nothing.
        seed: draws the token of each cell anew in each call; None always takes the first, which leaves a grid.

    Raises:
        ValueError: the ratio is out of range, or the network has no `attn1`.
    """
    if not 0 <= ratio <= 1 - 1 / stride**2:
        raise ValueError(f"ratio must be 0 to {1 - 1 / stride**2} with cells of {stride} x {stride}, got {ratio}")
    attentions = [module for name, module in denoiser.named_modules() if name.endswith("attn1")]
    if not attentions:
        raise ValueError(f"{type(denoiser).__name__} has no self-attention called attn1 to merge tokens around")
    if ratio == 0:
        yield
        return
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    config: Mapping[str, Any] = getattr(denoiser, "config", {})
    grid = _Grid(ratio, stride, max_downsample, int(config.get("patch_size") or 1), generator)
    with ExitStack() as stack:
        hook = denoiser.register_forward_pre_hook(lambda _m, args, kwargs: grid.see(args, kwargs), with_kwargs=True)
        stack.callback(hook.remove)
        for attention in attentions:
            stack.enter_context(replaced_forward(attention, _merging(attention, grid)))
        yield


@dataclass
class _Grid:
    """How the tokens of the latents at hand lie."""

    ratio: float
    stride: int
    max_downsample: int
    patch_size: int
    generator: torch.Generator | None
    height: int = 0
    width: int = 0
    finest: int | None = None

    def see(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        if not isinstance(latents, Tensor):
            raise ValueError("the denoiser was called without latents as its first argument, sample or hidden_states")
        self.height, self.width = (size // self.patch_size for size in latents.shape[-2:])

    def match(self, x: Tensor) -> Merge | None:
        """The merge of tokens (batch, tokens, width); None where the grid is too coarse, or nothing is to go."""
        tokens = x.shape[1]
        downsample = isqrt(max(1, round(self.height * self.width / tokens)))
        height, width = -(-self.height // downsample), -(-self.width // downsample)
        # UNets go from fine to coarse and back, so that the first grid is among the finest.
        self.finest = downsample if self.finest is None else min(self.finest, downsample)
        if downsample > self.max_downsample * self.finest or height * width != tokens:
            return None
        destinations = grid_destinations(height, width, self.stride, self.generator).to(x.device)
        count = min(int(self.ratio * tokens), tokens - len(destinations))
        return match_tokens(x, destinations, count) if count else None


def _merging(attention: nn.Module, grid: _Grid) -> Callable[..., Any]:
    """The attention's forward with merged tokens, where it is given no other sequence."""
    forward = attention.forward

    def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        other = args[0] if args else kwargs.get("encoder_hidden_states")
        merge = grid.match(hidden_states) if other is None and hidden_states.ndim == 3 else None
        if merge is None:
            return forward(hidden_states, *args, **kwargs)
        return merge.unmerge(forward(merge.merge(hidden_states), *args, **kwargs))

    return run
