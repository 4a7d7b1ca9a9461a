"""What criteria look through: the error of a field on random pixels of photographs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.pixels import draw_pixels, on_device
from compress3d.nerf.render import trace
from secateur.training import generator_at


@dataclass(frozen=True, eq=False)
class PhotographError:
    """Mean squared error of a field's pixels against the training photographs: an `Objective`.

    Where photographs have alpha, both are seen in front of random colours, so that opacity counts.

    Args:
        capture: the photographs.
        rays: pixels of a batch.
        batches: how many.
        plain: run the field in plain torch, for criteria that need second derivatives; it takes ten times as long.
        seed: of the pixels.

    Raises:
        ValueError: a count is below 1.
    """

    capture: Capture
    rays: int = 4096
    batches: int = 8
    plain: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rays < 1 or self.batches < 1:
            raise ValueError(f"rays and batches must be at least 1, got {self.rays} and {self.batches}")

    def losses(self, target: Field, /) -> Iterator[Tensor]:
        """The loss of each batch, on the field's device."""
        capture = on_device(self.capture, target.device)
        for batch in range(self.batches):
            random = generator_at(self.seed, batch)
            pixels = draw_pixels(capture, capture.train, self.rays, random)
            backgrounds, weights = pixels.backgrounds(random), pixels.weights()
            before, target.plain = target.plain, self.plain
            try:
                seen, _ = trace(target, pixels.rays(target.box))
            finally:
                target.plain = before
            error = (seen.over(backgrounds) - pixels.colors(backgrounds)).square() * weights
            yield error.sum() / (3 * torch.clamp_min(weights.sum(), 1e-6))
