"""What a network is trained for and judged by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from secateur.training.weights import evaluating
from vit.data import LabelledImages


class Score(Protocol):
    """How good a network is on images that it was not trained on."""

    @property
    def primary(self) -> float:
        """The one number to choose by: higher is better."""
        ...


class Task(Protocol):
    """A loss, and a score."""

    @property
    def score_name(self) -> str:
        """What `Score.primary` is."""
        ...

    def loss(self, logits: Float[Tensor, "N classes ..."], labels: Shaped[Tensor, "N ..."], /) -> Float[Tensor, ""]:
        """What training lowers."""
        ...

    def measure(self, network: nn.Module, data: LabelledImages, batch_size: int = 256, /) -> Score:
        """How good the network is on these images, in evaluation mode."""
        ...


class Logits(nn.Module):
    """A network as a function from pixel values to logits.

    Args:
        network: of transformers (its output has `logits`), or any that returns them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Float[Tensor, "N C H W"]) -> Float[Tensor, "N classes ..."]:
        """(N, classes), or (N, classes, H, W) where each pixel has a class.

        Raises:
            ValueError: the network returns something else.
        """
        return logits_of(self.network(pixel_values))


def logits_of(output: Any) -> Float[Tensor, "N classes ..."]:
    """The logits in what a network returns.

    Raises:
        ValueError: there are none.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ValueError(f"the network returns a {type(output).__name__} without logits")
    return logits


def judged(
    network: nn.Module, data: LabelledImages, batch_size: int
) -> Iterator[tuple[Float[Tensor, "n classes ..."], Shaped[Tensor, "n ..."]]]:
    """Logits and labels of all images, `batch_size` at a time, on the network's device.

    Raises:
        ValueError: there are no images, or the network has another number of classes.
    """
    if not len(data):
        raise ValueError("there are no images to measure on")
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with evaluating(network):
        for batch in data.in_order(batch_size):
            logits = logits_of(network(batch["pixel_values"].to(device)))
            if logits.dim() < 2 or logits.shape[1] != len(data.classes):
                raise ValueError(
                    f"the images have {len(data.classes)} classes, the network's logits the shape {tuple(logits.shape)}"
                )
            yield logits.float(), batch["labels"].to(device)
