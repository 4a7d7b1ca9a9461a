"""Small networks of torch layers, and objectives over them, that the tests of weight pruning share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.granularity import Weights
from secateur.importance import Random
from secateur.training import Shuffled, fit
from secateur.units import Keep
from tests.secateur.toys import generator


def refilled(module: nn.Module, seed: int = 0, scale: float = 0.5) -> nn.Module:
    """The module with normal parameters from a seed, in evaluation mode."""
    source = generator(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return module.eval()


def skipped(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A layer that draws nothing from the global generator."""
    return nn.utils.skip_init(kind, *args, **kwargs)


def perceptron(*widths: int, bias: bool = True, seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [skipped(nn.Linear, inputs, outputs, bias=bias, dtype=torch.float64), activation()]
    return refilled(nn.Sequential(*layers[:-1]), seed)  # type: ignore[return-value]


def convolutional(seed: int = 0, groups: int = 2) -> nn.Sequential:
    """(B, 2, 6, 6) -> (B, 3), with a strided convolution, one in groups, and a batch norm."""
    network = nn.Sequential(
        skipped(nn.Conv2d, 2, 4, 3, stride=2, padding=1, dtype=torch.float64),
        nn.BatchNorm2d(4, dtype=torch.float64),
        nn.ReLU(),
        skipped(nn.Conv2d, 4, 4, 2, groups=groups, dtype=torch.float64),
        nn.ReLU(),
        nn.Flatten(),
        skipped(nn.Linear, 16, 3, dtype=torch.float64),
    )
    return refilled(network, seed)  # type: ignore[return-value]


@dataclass(eq=False)
class Errors:
    """Half the mean squared error of a callable, a batch at a time."""

    inputs: Tensor
    outputs: Tensor
    size: int = 8

    def losses(self, target: Any) -> Iterator[Tensor]:
        for inputs, outputs in zip(self.inputs.split(self.size), self.outputs.split(self.size), strict=True):
            yield 0.5 * (target(inputs) - outputs).square().mean()


def errors(module: nn.Module, *shape: int, samples: int = 16, seed: int = 5) -> Errors:
    """Random inputs of a shape, and what the module makes of them, with noise."""
    source = generator(seed)
    inputs = torch.randn(samples, *shape, generator=source, dtype=torch.float64)
    with torch.no_grad():
        outputs = module(inputs)
    return Errors(inputs, outputs + 0.5 * torch.randn(outputs.shape, generator=source, dtype=torch.float64))


class Regression(lightning.LightningModule):
    """A network that learns another one."""

    def __init__(self, seed: int = 1, rate: float = 0.02, optimizer: type[torch.optim.Optimizer] = torch.optim.Adam):
        super().__init__()
        self.network = perceptron(4, 8, 2, seed=seed)
        self.data = errors(perceptron(4, 8, 2, seed=9), 4, samples=32)
        self.rate, self.kind = rate, optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        return 0.5 * (self(self.data.inputs[batch]) - self.data.outputs[batch]).square().mean()

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=self.rate)  # type: ignore[call-arg]


BATCHES = Shuffled(32, 8, seed=1)


class Watch(lightning.Callback):
    """The zeros of the weights after each batch."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.weights: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        tensors = Weights(pl_module).tensors()
        self.kept.append({name: tensor != 0 for name, tensor in tensors.items()})
        self.weights.append({name: tensor.clone() for name, tensor in tensors.items()})

    def counts(self) -> list[int]:
        return [sum(int(mask.sum()) for mask in masks.values()) for masks in self.kept]


def trained(callback: lightning.Callback | None, steps: int = 20, **options: Any) -> tuple[Regression, Watch]:
    module, watch = Regression(**options), Watch()
    fit(module, BATCHES, steps=steps, callbacks=[watch] if callback is None else [callback, watch])
    return module, watch


def some_masks() -> Keep:
    each = Weights(Regression())
    return each.granularity.allocate(Random(1).score(each), each.groups(), Budget(share=0.25))
