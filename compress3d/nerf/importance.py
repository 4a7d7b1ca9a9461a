"""How much each row of the tables is read by what rays see: a criterion that needs no gradient of the networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from compress3d.captures import Capture
from compress3d.nerf.field import Field
from compress3d.nerf.hashgrid import encode
from compress3d.nerf.pixels import draw_pixels, on_device
from compress3d.nerf.render import visible_samples
from secateur.training import generator_at
from secateur.units import Scores, fold


@dataclass(frozen=True)
class VisitedMagnitude:
    """Sum of w^2 of what a unit owns, where a row of a table counts as often as visible samples read it.

    A row's count is the sum of its trilinear weights (arXiv 2201.05989, section 3) over samples of random pixels of the
    training photographs that light still reaches. It is magnitude pruning of the features as they are read, in the way
    in which Wanda weighs weights by the norm of their inputs (arXiv 2306.11695).

    Args:
        rays: pixels of a batch.
        batches: how many.
        seed: of the pixels.

    Raises:
        ValueError: a count is below 1.
    """

    rays: int = 4096
    batches: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rays < 1 or self.batches < 1:
            raise ValueError(f"rays and batches must be at least 1, got {self.rays} and {self.batches}")

    def score(self, target: Field, calibration: Capture | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no capture to look through.
        """
        if calibration is None:
            raise ValueError(f"{self} needs a Capture as its calibration, got None")
        elements = {name: tensor.detach().square() for name, tensor in target.tensors().items()}
        elements["table"] = elements["table"] * self.visits(target, calibration)[:, None]
        return {group.name: fold(elements, group) for group in target.groups()}

    def visits(self, field: Field, capture: Capture) -> Float[Tensor, " rows"]:
        """How often each row of the table is read, by a batch of pixels."""
        capture = on_device(capture, field.device)
        total = torch.zeros(len(field.table), device=field.device)
        for batch in range(self.batches):
            pixels = draw_pixels(capture, capture.train, self.rays, generator_at(self.seed, batch))
            samples = visible_samples(field, pixels.rays(field.box))
            # Features of a table of one column are sums of trilinear weights: their gradient counts them.
            column = torch.zeros(len(field.table), 1, device=field.device, requires_grad=True)
            read = encode(samples.positions, column, field.levels, field.slots)
            total += torch.autograd.grad(read.sum(), column)[0][:, 0]
        return total / self.batches
