"""The router: prompt embedding -> architecture vector -> the nearest of a few architecture codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from diffusion.aptp.layout import Layout, at_least
from secateur.maths import gumbel_noise, straight_through
from secateur.solvers.transport import sinkhorn
from secateur.units import Keep

MEDIAN_NOISE = -math.log(math.log(2))
"""Of the standard Gumbel distribution: a gate that is open under it is open in half of all draws at least."""


class Router(nn.Module):
    """The trainable parts of APTP (Ganjdanesh et al.: Not All Prompts Are Made Equal, arXiv 2406.12042).

    The predictor has a linear head for each group of units and one for all blocks, which turn a prompt's embedding into
    an architecture vector; codes are vectors of the same kind. Both start orthogonal. Gates are sigmoid((entry + Gumbel
    noise + 3) / 0.4), and 1 or 0 by a straight-through step. Blocks have an order: the softmax of their entries, summed
    from the end, is how likely each stays, so that those which stay are the first k.

    Unlike the released code, heads have a bias, which starts at 0; one draw of noise serves all blocks of a vector, so
    that their order holds in every draw; before training all blocks are open, however many there are; prompts are
    assigned by gates under the noise's median, so that the assignment is a function of the prompt; and codes can have
    prices.

    Args:
        layout: of the network that is pruned.
        width: of the prompts' embeddings.
        codes: how many experts there will be; 8 in the paper.
        temperature: of the gates.
        offset: added to the entries, so that all gates start open.
        seed: of the orthogonal matrices.

    Raises:
        ValueError: `width` or `codes` is below 1, or the temperature is not positive.
    """

    codes: nn.Parameter
    prices: Tensor

    def __init__(
        self,
        layout: Layout,
        width: int,
        codes: int = 8,
        *,
        temperature: float = 0.4,
        offset: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if width < 1 or codes < 1 or not temperature > 0:
            raise ValueError(
                f"width and codes of at least 1 and a temperature above 0 are needed, got {width}, {codes} and "
                f"{temperature}"
            )
        self.layout, self.width, self.temperature, self.offset = layout, width, temperature, offset
        self.heads = nn.ModuleList(nn.utils.skip_init(nn.Linear, width, size) for size in layout.sizes)
        self.codes = nn.Parameter(torch.empty(codes, len(layout)))
        self.register_buffer("prices", torch.zeros(codes, dtype=torch.float64))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for head in self.heads:
                nn.init.orthogonal_(head.weight, generator=generator)  # type: ignore[arg-type]
                nn.init.zeros_(head.bias)  # type: ignore[arg-type]
            nn.init.orthogonal_(self.codes, generator=generator)

    def vectors(self, embeddings: Float[Tensor, "N width"]) -> Float[Tensor, "N D"]:
        """The architecture vectors of prompts.

        Raises:
            ValueError: there are no prompts, or they were encoded by another encoder.
        """
        if embeddings.dim() != 2 or not len(embeddings):
            raise ValueError(f"the router needs at least one prompt's embedding, got shape {tuple(embeddings.shape)}")
        if embeddings.shape[1] != self.width:
            raise ValueError(
                f"the router reads embeddings of width {self.width}, these have {embeddings.shape[1]}: they come from "
                "another encoder"
            )
        embeddings = embeddings.to(self.codes)
        return torch.cat([head(embeddings) for head in self.heads], dim=1)

    def noise(self, count: int) -> Float[Tensor, "count D"]:
        """Gumbel noise for so many vectors, from torch's global generator on the CPU; one draw for all blocks."""
        drawn = gumbel_noise(count * len(self.layout), torch.default_generator).reshape(count, -1)
        blocks = len(self.layout.depths)
        if blocks:
            drawn[:, -blocks:] = drawn[:, -1:]
        return drawn.to(self.codes)

    def gates(self, vectors: Float[Tensor, "N D"], noise: Float[Tensor, "N D"] | None = None) -> Float[Tensor, "N D"]:
        """How open gates are, in (0, 1); without noise, under its median."""
        logits = vectors
        blocks = len(self.layout.depths)
        if blocks:
            logits = torch.cat([vectors[:, :-blocks], _ordered(vectors[:, -blocks:])], dim=1)
        added = MEDIAN_NOISE if noise is None else noise
        return torch.sigmoid((logits + added + self.offset) / self.temperature)

    def hard(self, gates: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """0 or 1, with the gradient of the gates; every group of units keeps its least, the best of them."""
        parts = list(gates.detach().split(self.layout.sizes, dim=1))
        open_ = [at_least(part, width.least) for width, part in zip(self.layout.widths, parts, strict=False)]
        if self.layout.depths:
            open_.append(parts[-1] >= 0.5)
        return straight_through(torch.cat(open_, dim=1).to(gates), gates)

    def similarities(self, embeddings: Float[Tensor, "N width"]) -> Float[Tensor, "N codes"]:
        """Cosines between the architectures of prompts and those of codes."""
        prompts, codes = (self._directions(vectors) for vectors in (self.vectors(embeddings), self.codes))
        return prompts @ codes.T

    @torch.no_grad()
    def route(self, embeddings: Float[Tensor, "N width"]) -> Int64[Tensor, " N"]:
        """The code of each prompt, whatever other prompts there are: that of the greatest cosine less the code's price.

        Prices are 0, which is the paper's rule, until `balance` sets them.

        Raises:
            ValueError: there are no prompts, or they were encoded by another encoder.
        """
        # One at a time: products of matrices differ in their last bits with the number of rows.
        rows = _rows(embeddings)
        return torch.stack([(self.similarities(row[None])[0] - self.prices).argmax() for row in rows])

    @torch.no_grad()
    def assign(
        self, embeddings: Float[Tensor, "N width"], temperature: float = 0.05, iterations: int = 3
    ) -> Int64[Tensor, " N"]:
        """The code of each prompt of a batch while training: no code is left without prompts to learn from.

        The most of each row of the entropic transport plan that brings as much of the prompts to every code (Sinkhorn).
        The plan is even; its rows' greatest entries are about so.

        Args:
            embeddings: of the batch.
            temperature: epsilon of the paper.
            iterations: of Sinkhorn.
        """
        similar = self.similarities(embeddings)
        prompts, codes = (similar.new_full((count,), 1 / count) for count in similar.shape)
        plan, _ = sinkhorn(-similar, prompts, codes, temperature, iterations=iterations)
        return plan.argmax(1)

    @torch.no_grad()
    def balance(
        self, embeddings: Float[Tensor, "P width"], counts: Int64[Tensor, " P"], temperature: float = 0.05
    ) -> None:
        """Set the prices so that `route` sends prompts where `assign` would, if they all were one batch.

        Prices are the dual of the transport plan. Without them a code of many open gates, which is near to every
        architecture, draws prompts that never trained it.

        Args:
            embeddings: of all training prompts.
            counts: samples of each.
            temperature: of `assign`.
        """
        seen = counts > 0
        similar = self.similarities(embeddings[seen])
        prompts = (counts[seen].double() / counts.sum()).to(similar)
        codes = similar.new_full((similar.shape[1],), 1 / similar.shape[1])
        _, (_, potentials) = sinkhorn(-similar, prompts, codes, temperature)
        self.prices.copy_(temperature * (potentials.mean() - potentials))

    @torch.no_grad()
    def keep(self, code: int) -> Keep:
        """Which units the expert of a code has: those whose gates are open in half of the draws at least."""
        gates = self.hard(self.gates(self.codes[code : code + 1]))[0]
        return {name: mask > 0.5 for name, mask in self.layout.masks(gates).items()}

    @torch.no_grad()
    def only(self, codes: Sequence[int]) -> Self:
        """A router to these codes alone, numbered anew."""
        other = type(self)(self.layout, self.width, len(codes), temperature=self.temperature, offset=self.offset).to(
            self.codes.device
        )
        other.heads.load_state_dict(self.heads.state_dict())
        other.codes.copy_(self.codes[list(codes)])
        other.prices.copy_(self.prices[list(codes)])
        return other

    def _directions(self, vectors: Tensor) -> Tensor:
        # In float64: before training all gates are nearly 1, and architectures differ in their last digits.
        return nn.functional.normalize(self.layout.features(self.gates(vectors.double())), dim=1)


def _rows(embeddings: Tensor) -> Sequence[Tensor]:
    if embeddings.dim() != 2 or not len(embeddings):
        raise ValueError(f"the router needs at least one prompt's embedding, got shape {tuple(embeddings.shape)}")
    return list(embeddings)


def _ordered(entries: Float[Tensor, "N blocks"]) -> Float[Tensor, "N blocks"]:
    """Logits that fall from the first block, which stays, to the last; entries of 0 leave the last one even."""
    count = entries.shape[1]
    if count == 1:
        return entries
    start = torch.zeros_like(entries[0])
    start[-1] = math.log(count - 1)
    chances = torch.softmax((entries + start).double(), dim=1)
    stays = chances.flip(1).cumsum(1).flip(1).clamp(1e-6, 1 - 1e-6)
    return torch.logit(stays).to(entries)
