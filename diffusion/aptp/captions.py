"""Latents with captions: each prompt is encoded once, for the network and for the router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.conditions import LatentBatches
from diffusion.data import Samples, rows_at

Encode = Callable[[Sequence[str]], Float[Tensor, "N width"]]
"""Prompts -> embeddings, those that the router was trained with."""

EMBEDDINGS = "embeddings"
"""What a batch calls its prompts' embeddings, which the router reads."""


@dataclass(frozen=True, eq=False)
class Captioned:
    """Clean latents, and the prompt of each.

    Args:
        latents: (N, ...).
        prompts: (N,) which of the prompts each sample has.
        texts: the P different prompts.
        embeddings: (P, width) what the router reads of them.
        conditions: the network's arguments by name, (P, ...) each.
        null: those of no prompt, (1, ...) each; None: none is ever dropped.
        drop: probability that the network, but not the router, sees a sample without its prompt: guidance needs it.

    Raises:
        ValueError: there are no prompts or samples, or their numbers do not agree.
    """

    latents: Float[Tensor, "N ..."]
    prompts: Int64[Tensor, " N"]
    texts: tuple[str, ...]
    embeddings: Float[Tensor, "P width"]
    conditions: Mapping[str, Tensor]
    null: Mapping[str, Tensor] | None = None
    drop: float = 0.1

    def __post_init__(self) -> None:
        counts = {"texts": len(self.texts), **{name: len(value) for name, value in self.conditions.items()}}
        if not len(self.embeddings) or not len(self.latents):
            raise ValueError(f"routing needs prompts and samples, got {len(self.embeddings)} and {len(self.latents)}")
        if set(counts.values()) != {len(self.embeddings)} or len(self.prompts) != len(self.latents):
            raise ValueError(
                f"{len(self.embeddings)} embeddings need as many prompts, got {counts}; {len(self.latents)} latents "
                f"need a prompt each, got {len(self.prompts)}"
            )
        if int(self.prompts.min()) < 0 or int(self.prompts.max()) >= len(self.texts):
            raise ValueError(f"samples have prompts 0 to {len(self.texts) - 1}, got {int(self.prompts.max())}")

    @classmethod
    def of(cls, samples: Samples, encode: Encode, drop: float = 0.1) -> Captioned:
        """Samples whose texts are known; equal texts are one prompt.

        Raises:
            ValueError: the texts are not known, or conditions hold others within them.
        """
        if samples.texts is None:
            raise ValueError("routing needs the prompt of each sample, and these samples have none")
        nested = [name for name, value in samples.conditions.items() if not isinstance(value, Tensor)]
        if nested or samples.shared:
            raise ValueError(f"routing needs a row of tensors for each prompt; {nested or list(samples.shared or {})}")
        texts = tuple(dict.fromkeys(samples.texts))
        places = {text: place for place, text in enumerate(texts)}
        first = torch.tensor([samples.texts.index(text) for text in texts])
        prompts = torch.tensor([places[text] for text in samples.texts])
        conditions = rows_at(samples.conditions, first)
        return cls(samples.latents, prompts, texts, encode(texts), conditions, samples.null, drop)

    def __len__(self) -> int:
        return len(self.latents)

    def counts(self) -> Int64[Tensor, " P"]:
        """Samples of each prompt."""
        return torch.bincount(self.prompts, minlength=len(self.texts))

    def with_prompts(self, chosen: Int64[Tensor, " some"]) -> Captioned:
        """The samples that have one of these prompts; the prompts keep their numbers.

        Raises:
            ValueError: there are none.
        """
        held = torch.isin(self.prompts, chosen)
        return replace(self, latents=self.latents[held], prompts=self.prompts[held])

    def batches(self, size: int, seed: int = 0) -> LatentBatches:
        """Shuffled batches for training: latents, conditions, and `embeddings` for the router."""
        return LatentBatches(self.latents, self, size, seed)

    def at(self, indices: Int64[Tensor, " batch"], generator: torch.Generator, /) -> dict[str, Tensor]:
        """The conditions of these samples, see `diffusion.conditions.Conditions`, and their prompts' embeddings."""
        rows = self.prompts[indices]
        found = {name: value[rows] for name, value in self.conditions.items()}
        dropped = torch.rand(len(rows), generator=generator) < self.drop
        if self.null is not None:
            for name, value in self.null.items():
                where = dropped.reshape(-1, *([1] * (found[name].dim() - 1)))
                found[name] = torch.where(where, value.to(found[name]), found[name])
        return {**found, EMBEDDINGS: self.embeddings[rows]}
