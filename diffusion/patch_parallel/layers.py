"""What layers do that look beyond their own rows: convolutions, group norms, self-attention, and both ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.patch_parallel.exchange import Exchange
from diffusion.steps import StepCounter

GroupNormMode = Literal["corrected", "stale", "local"]
"""Statistics of the whole image between synchronous steps.

"corrected": last step's, plus how this patch's own have changed since; "stale": the mean of this patch's own and the
others' of the last step; "local": this patch's own, and nothing travels (on synchronous steps it does).
"""

Forward = Callable[..., Any]


class Patch:
    """This rank's part of the image, and where the sampler is.

    Args:
        exchange: with the other ranks.
        warmup: synchronous steps at the start of each trajectory; None: all of them.
        context: share of each neighbour's keys and values that self-attention sees; None: all of every rank's.
        group_norm: how its statistics are kept up.
    """

    def __init__(
        self, exchange: Exchange, warmup: int | None, context: float | None, group_norm: GroupNormMode
    ) -> None:
        self.exchange = exchange
        self.warmup = warmup
        self.context = context
        self.group_norm = group_norm
        self.counter = StepCounter()

    @property
    def fresh(self) -> bool:
        """Whether this step is synchronous."""
        return self.warmup is None or self.counter.step < self.warmup

    def displaced(self, name: str, kind: str, own: Tensor, outgoing: dict[int, Tensor]) -> dict[int, Tensor]:
        """As `Exchange.displaced`, for the layer of that name at this call of the step."""
        return self.exchange.displaced((name, self.counter.call), kind, own, outgoing, self.fresh)

    def neighbours(self, above: Tensor, below: Tensor) -> dict[int, Tensor]:
        """What goes to the patches above and below this one, those that there are."""
        rank, ranks = self.exchange.rank, self.exchange.ranks
        near = {rank - 1: above, rank + 1: below}
        return {peer: tensor for peer, tensor in near.items() if 0 <= peer < ranks}

    def slice(self, whole: Tensor, dim: int, border: int = 0) -> Tensor:
        """This rank's part of `whole` along `dim`, which has `border` more entries at each end."""
        size = (whole.shape[dim] - 2 * border) // self.exchange.ranks
        return whole.narrow(dim, self.exchange.rank * size, size + 2 * border)


def convolution(patch: Patch, name: str, layer: nn.Conv2d) -> Forward:
    """Rows (N, C, H, W) that see the neighbours' border rows, as many as the layer pads with."""

    def forward(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D H W"]:
        return _without_vertical_padding(layer, _with_halo(patch, name, x, _rows(layer)))

    return forward


def first_convolution(patch: Patch, layer: nn.Conv2d) -> Forward:
    """The whole latents (N, C, H, W) -> this rank's rows (N, D, h, W); nothing travels."""

    def forward(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h W"]:
        rows = _rows(layer)
        return _without_vertical_padding(layer, patch.slice(F.pad(x, (0, 0, rows, rows)), 2, rows))

    return forward


def last_convolution(patch: Patch, name: str, layer: nn.Conv2d) -> Forward:
    """This rank's rows (N, C, h, W) -> the whole prediction (N, D, H, W), which all ranks wait for."""
    inner = convolution(patch, name, layer)

    def forward(x: Float[Tensor, "N C h W"]) -> Float[Tensor, "N D H W"]:
        return patch.exchange.gathered("output", inner(x), dim=2)

    return forward


def unpadded_downsampling(patch: Patch, name: str, layer: nn.Conv2d) -> Forward:
    """A convolution whose caller has put a row of zeros below: it becomes the first row of the patch below."""
    inner = layer.forward

    def forward(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h W"]:
        border = x[:, :, :1].clone()
        received = patch.displaced(name, "halo", border, patch.neighbours(border, border))
        below = received.get(patch.exchange.rank + 1)
        return inner(x if below is None else torch.cat([x[:, :, :-1], below], dim=2))

    return forward


def group_norm(patch: Patch, name: str, layer: nn.GroupNorm) -> Forward:
    """Features (N, C, ...) normalised by the statistics of the whole image, as far as they are known."""
    inner = layer.forward
    before: dict[int, Tensor] = {}

    def forward(x: Float[Tensor, "N C *space"]) -> Float[Tensor, "N C *space"]:
        if patch.group_norm == "local" and not patch.fresh:
            return inner(x)
        grouped = x.reshape(len(x), layer.num_groups, -1)
        variance, mean = torch.var_mean(grouped.float(), dim=2, correction=0)
        own = torch.stack([mean.double(), variance.double() + mean.double() ** 2])
        others = patch.displaced(name, "group_norm", own, dict.fromkeys(patch.exchange.others, own))
        last = before.get(patch.counter.call)
        before[patch.counter.call] = own
        whole = torch.stack([own, *others.values()]).mean(dim=0)
        if patch.group_norm == "corrected" and not patch.fresh and last is not None and last.shape == own.shape:
            # What the mean of the old lacks is this patch's whole change, not its share of it (arXiv 2402.19481, 4.3).
            whole = torch.stack([last, *others.values()]).mean(dim=0) + own - last
        return _normalised(layer, x, grouped, whole, variance)

    return forward


def keys_or_values(patch: Patch, name: str, layer: nn.Module, is_self: Callable[[], bool]) -> Forward:
    """Projections (N, tokens, width) of this patch, with those of the others around them in self-attention."""
    inner = layer.forward

    def forward(x: Float[Tensor, "N tokens width"]) -> Float[Tensor, "N more inner"]:
        own = inner(x)
        if not is_self():
            return own
        if patch.fresh or patch.context is None:
            outgoing = dict.fromkeys(patch.exchange.others, own)
        else:
            outgoing = patch.neighbours(*_ends(patch, own))
        received = patch.displaced(name, "attention", own, outgoing)
        if not patch.fresh and patch.context is not None:
            received = _nearest(patch, received, own.shape[1])
        return patch.exchange.joined(received, own, dim=1)

    return forward


def patch_embedding(patch: Patch, layer: nn.Module) -> Forward:
    """The whole latents -> this rank's tokens (N, tokens, width), each with the position that it has in the whole."""
    inner = layer.forward

    def forward(x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N tokens width"]:
        return patch.slice(inner(x), dim=1)

    return forward


def last_projection(patch: Patch, layer: nn.Module) -> Forward:
    """This rank's tokens -> all tokens of the prediction, which all ranks wait for."""
    inner = layer.forward

    def forward(x: Float[Tensor, "N tokens width"]) -> Float[Tensor, "N all out"]:
        return patch.exchange.gathered("output", inner(x), dim=1)

    return forward


def _ends(patch: Patch, own: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens nearest to the patch above, and to the one below."""
    count = _context(patch, own.shape[1])
    return own[:, :count], own[:, own.shape[1] - count :]


def _nearest(patch: Patch, received: dict[int, Tensor], tokens: int) -> dict[int, Tensor]:
    """Of what neighbours sent, which is all they have after a synchronous step, the tokens nearest to this patch."""
    count, rank = _context(patch, tokens), patch.exchange.rank
    near = {}
    for peer in {rank - 1, rank + 1} & set(received):
        sent = received[peer]
        near[peer] = sent[:, :count] if peer > rank else sent[:, sent.shape[1] - count :]
    return near


def _context(patch: Patch, tokens: int) -> int:
    return round((1.0 if patch.context is None else patch.context) * tokens)


def _rows(layer: nn.Conv2d) -> int:
    return int(layer.padding[0])


def _with_halo(patch: Patch, name: str, x: Tensor, rows: int) -> Tensor:
    # Copies: what is under way must not change, and later layers may work in place.
    top, bottom = x[:, :, :rows].clone(), x[:, :, x.shape[2] - rows :].clone()
    received = patch.displaced(name, "halo", top, patch.neighbours(top, bottom))
    border = torch.zeros_like(top)
    rank = patch.exchange.rank
    return torch.cat([received.get(rank - 1, border), x, received.get(rank + 1, border)], dim=2)


def _without_vertical_padding(layer: nn.Conv2d, x: Tensor) -> Tensor:
    padding = (0, int(layer.padding[1]))
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


def _normalised(layer: nn.GroupNorm, x: Tensor, grouped: Tensor, moments: Tensor, local: Tensor) -> Tensor:
    """The group norm with these means and means of squares (2, N, groups); the patch's own variance where it is < 0."""
    mean, variance = moments[0], moments[1] - moments[0] ** 2
    variance = torch.where(variance < 0, local.double(), variance)
    centred = grouped.float() - mean.float()[..., None]
    normed = (centred * torch.rsqrt(variance + layer.eps).float()[..., None]).to(x.dtype).reshape(x.shape)
    if layer.weight is None:
        return normed
    shape = (-1, *([1] * (x.ndim - 2)))
    return normed * layer.weight.reshape(shape) + layer.bias.reshape(shape)
