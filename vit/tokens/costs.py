"""Multiply-adds of an encoder each layer of which sees a number of tokens of its own, attention counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Place = Literal["before layer", "between attention and mlp"]
"""Where tokens go: in front of a whole layer, or behind its attention, so that this sees all and its MLP does not."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Multiply-adds of one layer.

    Args:
        attention: of a token in the projections of the attention.
        mixing: of a pair of tokens in QK^T and AV.
        mlp: of a token.
        head_width: of a key.
        width: of a token.
        keys: of a token, for its mean key.
        cls_attention: of a token, for what the first token attends to it.
        cls_query: once an image, for the same.
    """

    attention: int
    mixing: int
    mlp: int
    head_width: int = 0
    width: int = 0
    keys: int = 0
    cls_attention: int = 0
    cls_query: int = 0

    def macs(self, tokens: int, tokens_of_mlp: int | None = None) -> int:
        """Of the layer on `tokens` tokens, of which its MLP sees `tokens_of_mlp`."""
        inner = tokens if tokens_of_mlp is None else tokens_of_mlp
        return tokens * self.attention + tokens * tokens * self.mixing + inner * self.mlp


@dataclass(frozen=True, slots=True)
class EncoderCost:
    """Multiply-adds of a vision transformer, by layer.

    Args:
        layers: in their order.
        prefix: tokens that are no patches.
        patches: patches of an image.
        fixed: of what does not depend on the schedule: patch embedding, classifier.
        last_sees_all: the last layer gets all patches back (last-layer fusion), whatever its count.
    """

    layers: tuple[LayerCost, ...]
    prefix: int
    patches: int
    fixed: int = 0
    last_sees_all: bool = False

    @property
    def prunable_layers(self) -> int:
        """Layers at which patches may go, from the first on."""
        return len(self.layers) - self.last_sees_all

    @property
    def dense(self) -> int:
        """Multiply-adds of an image when no token goes."""
        return self.macs([self.patches] * len(self.layers))

    def macs(self, counts: Sequence[int], place: Place = "before layer") -> int:
        """Multiply-adds of an image, without those of choosing the tokens.

        Args:
            counts: patches that each layer leaves to itself (before it), or to its MLP (within it).
            place: where they go.

        Raises:
            ValueError: there is not one count a layer.
        """
        total = self.fixed
        for layer, (attended, fed) in zip(self.layers, self.seen(counts, place), strict=True):
            total += layer.macs(attended + self.prefix, fed + self.prefix)
        return total

    def seen(self, counts: Sequence[int], place: Place = "before layer") -> list[tuple[int, int]]:
        """For each layer, the patches that its attention and its MLP see; errors as for `macs`."""
        if len(counts) != len(self.layers):
            raise ValueError(f"one count of patches a layer is needed: {len(self.layers)}, got {len(counts)}")
        attended = counts if place == "before layer" else [self.patches, *counts[:-1]]
        seen = list(zip(attended, counts, strict=True))
        return [*seen[:-1], (self.patches, self.patches)] if self.last_sees_all else seen

    def mean_tokens(self, counts: Sequence[int], place: Place = "before layer") -> float:
        """Tokens that a layer sees, the protected ones counted, as a mean over layers and their two halves."""
        seen = self.seen(counts, place)
        return self.prefix + sum(attended + fed for attended, fed in seen) / (2 * len(seen))
