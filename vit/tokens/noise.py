"""Random numbers as a hash of where they are used: no generator's state, so that torch can trace and export them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

_WORD = 0xFFFFFFFF


class Noise(nn.Module):
    """Uniform noise of a seed, which is new in each training step, and the same in each evaluation.

    The number of steps is saved with the module, so that a resumed training goes on as it would have.

    Args:
        seed: at least 0.
    """

    steps: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def advance(self) -> None:
        """A training step begins; in evaluation mode nothing happens."""
        if self.training:
            self.steps += 1

    def uniform(self, layer: int, like: Float[Tensor, "batch tokens *rest"]) -> Float[Tensor, "batch tokens"]:
        """(batch, tokens) numbers in (0, 1) for a layer, in float32 on the device of `like`."""
        batch, tokens = like.shape[:2]
        step = self.steps.to(like.device) if self.training else torch.zeros_like(self.steps, device=like.device)
        base = mixed(mixed(mixed(step + 1) + self.seed) + layer)
        images = mixed(base + torch.arange(batch, device=like.device))
        words = mixed(images[:, None] + torch.arange(tokens, device=like.device))
        return ((words >> 8).float() + 0.5) / 2**24


def mixed(words: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
    """32 bits of each word, mixed so that a change of one bit changes each of them about half the time.

    Two rounds of xor-shift and multiply; the multipliers are below 2^31, so that 63 bits hold each product.
    """
    words = words & _WORD
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & _WORD
    words = words ^ (words >> 15)
    words = (words * 0x735A2D97) & _WORD
    return words ^ (words >> 15)


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """New layers get weights of that seed while the context is open; the global random state is left as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
