"""Randomness as a pure function of a seed and a step: nothing to save, nothing global that stays changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_at(seed: int, step: int) -> int:
    """A 64-bit seed of its own for each pair of `seed` and `step`, both at least 0."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def generator_at(seed: int, step: int) -> torch.Generator:
    """A generator on the CPU for what `step` draws: no state has to be kept from step to step."""
    return torch.Generator().manual_seed(seed_at(seed, step))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`: dropout and the like draw from them."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[_index(device)].manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators of the CPU and of `device` start from `seed`; afterwards they are what they were."""
    devices = [_index(device)] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed_global(seed, device)
        yield


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
