"""Training data of conditional diffusion: latents with class labels or prompts, now and then without either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from secateur.training import Shuffled, generator_at


class Conditions(Protocol):
    """What a network is told of each sample."""

    def at(self, indices: Int64[Tensor, " batch"], generator: torch.Generator, /) -> dict[str, Tensor]:
        """The network's arguments for these samples; `generator` draws what is random."""
        ...


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """Classes, replaced by the class `null` with probability `drop` (Ho and Salimans, arXiv 2207.12598, section 3.2).

    Attributes:
        labels: (N,) int64.
        null: what stands for "no class"; the network's last, after all real ones.
        drop: 0 to 1.
    """

    labels: Int64[Tensor, " N"]
    null: int
    drop: float = 0.1

    def at(self, indices: Int64[Tensor, " batch"], generator: torch.Generator, /) -> dict[str, Tensor]:
        """`class_labels`, (batch,)."""
        return {"class_labels": _dropped(self.labels[indices], self.null, self.drop, generator)}


@dataclass(frozen=True, eq=False)
class ClassPrompts:
    """One of its class's prompts for each sample, replaced by the empty prompt with probability `drop`.

    Attributes:
        labels: (N,) int64.
        states: (prompts, tokens, width) encoded prompts.
        prompts: a class -> the rows of `states` that describe it.
        null: the row of the empty prompt.
        drop: 0 to 1.

    Raises:
        ValueError: a class has no prompts.
    """

    labels: Int64[Tensor, " N"]
    states: Float[Tensor, "prompts tokens width"]
    prompts: Sequence[Int64[Tensor, " of_class"]]
    null: int
    drop: float = 0.1
    _starts: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = [len(rows) for rows in self.prompts]
        if not all(counts) or int(self.labels.max()) >= len(counts):
            raise ValueError(f"{int(self.labels.max()) + 1} classes need a prompt each at least, got {counts}")
        object.__setattr__(self, "_starts", torch.tensor([0, *counts]).cumsum(0))

    def at(self, indices: Int64[Tensor, " batch"], generator: torch.Generator, /) -> dict[str, Tensor]:
        """`encoder_hidden_states`, (batch, tokens, width)."""
        starts, ends = self._starts[self.labels[indices]], self._starts[self.labels[indices] + 1]
        drawn = torch.rand(len(indices), generator=generator, dtype=torch.float64)
        rows = torch.cat(list(self.prompts))[starts + (drawn * (ends - starts)).long()]
        return {"encoder_hidden_states": self.states[_dropped(rows, self.null, self.drop, generator)]}


@dataclass(frozen=True, eq=False)
class LatentBatches:
    """Batches for `diffusion.train`, pure functions of the step.

    Attributes:
        latents: (N, C, H, W) clean ones; pictures in [-1, 1] where a model works on pixels.
        conditions: of the same N samples.
        batch_size: samples in a batch.
        seed: of the order, and of what the conditions draw.
    """

    latents: Float[Tensor, "N C H W"]
    conditions: Conditions
    batch_size: int
    seed: int = 0

    def batch_at(self, step: int, /) -> dict[str, Tensor]:
        """The latents and conditions of `step`, from 0."""
        indices = Shuffled(len(self.latents), self.batch_size, self.seed).batch_at(step)
        # Not the generator that orders epochs: it has the same seed.
        drawn = self.conditions.at(indices, generator_at(self.seed + 1, step))
        return {"latents": self.latents[indices], **drawn}


def _dropped(values: Tensor, null: int, drop: float, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(values), generator=generator) < drop, null, values)
