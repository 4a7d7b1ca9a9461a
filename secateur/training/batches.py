"""Batches as pure functions of the step, so that a resumed run sees what the uninterrupted one would have seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import default_collate

from secateur.training.seeding import generator_at, seed_at, seeded


class Batches(Protocol):
    """Training data with random access by step; by batch, where several batches make a step."""

    def batch_at(self, step: int, /) -> Any:
        """The batch of `step` (from 0): the same whenever and in whatever order it is asked for."""
        ...


class Items(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Indices below `count` in epochs, each a permutation of its own, cut into batches that are all full.

    A batch runs on into the next epoch where one ends within it, so each index is seen as often as any other.

    Raises:
        ValueError: `count` or `batch_size` is below 1.
    """

    count: int
    batch_size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise ValueError(f"count and batch_size must be at least 1, got {self.count} and {self.batch_size}")

    def batch_at(self, step: int, /) -> Int[Tensor, " batch_size"]:
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        epochs = range(start // self.count, (stop - 1) // self.count + 1)
        order = torch.cat([_permutation(self.count, self.seed, epoch) for epoch in epochs])
        start -= epochs.start * self.count
        return order[start : start + self.batch_size].clone()


@dataclass(frozen=True, slots=True)
class Collated:
    """Shuffled items of a map-style dataset, collated.

    While items are read, torch's global generator on the CPU is one of the step's own: augmentation that draws from it
    repeats exactly, and leaves it as it was.

    Args:
        items: the dataset; items that are drawn at random draw from torch's generator.
        batch_size: items in a batch.
        seed: of the order and of what the items draw.
        collate: list of items -> batch.
    """

    items: Items
    batch_size: int
    seed: int = 0
    collate: Callable[[list[Any]], Any] = default_collate

    def batch_at(self, step: int, /) -> Any:
        indices = Shuffled(len(self.items), self.batch_size, self.seed).batch_at(step)
        with seeded(seed_at(self.seed, step), torch.device("cpu")):
            return self.collate([self.items[index] for index in indices.tolist()])


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator_at(seed, epoch))
