"""Small prunable things with known answers, and objectives for them, that the core's tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from secateur.units import Keep, Member, UnitGroup


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(eq=False)
class Weights:
    """A vector whose consecutive elements are shared out to units of equal size; a mask multiplies them."""

    weights: Tensor
    per_unit: int = 1
    mask: Tensor | None = field(default=None, init=False)

    def effective(self) -> Tensor:
        """(n,) weights under the mask that is in force."""
        return self.weights if self.mask is None else self.weights * self.mask.repeat_interleave(self.per_unit)

    def tensors(self) -> Mapping[str, Tensor]:
        return {"weights": self.weights}

    def groups(self) -> Sequence[UnitGroup]:
        rows = torch.arange(len(self.weights)).reshape(-1, self.per_unit)
        return (UnitGroup("blocks", len(rows), (Member("weights", 0, rows),)),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        self.mask = masks["blocks"]
        try:
            yield
        finally:
            self.mask = None

    def cut(self, keep: Keep) -> Weights:
        return Weights(self.weights[keep["blocks"].repeat_interleave(self.per_unit)], self.per_unit)

    def permuted(self, order: Tensor) -> Weights:
        return Weights(self.weights.reshape(-1, self.per_unit)[order].flatten(), self.per_unit)


@dataclass(eq=False)
class Perceptron:
    """Two layers; the hidden neurons are the units, and a mask multiplies their activations.

    Args:
        first: (hidden, inputs).
        bias: (hidden,).
        second: (outputs, hidden).
        activation: between the layers.
        calls: an integer tensor that no criterion may touch, as a quantised parameter.
    """

    first: Tensor
    bias: Tensor
    second: Tensor
    activation: Callable[[Tensor], Tensor] = torch.tanh
    calls: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.int64))
    mask: Tensor | None = field(default=None, init=False)

    @classmethod
    def random(cls, inputs: int, hidden: int, outputs: int, seed: int = 0, **options: Any) -> Perceptron:
        source = generator(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=source, dtype=torch.float64)

        return cls(normal(hidden, inputs), 0.3 * normal(hidden), normal(outputs, hidden) / hidden**0.5, **options)

    def __call__(self, inputs: Tensor) -> Tensor:
        hidden = self.activation(inputs @ self.first.T + self.bias)
        return (hidden if self.mask is None else hidden * self.mask) @ self.second.T

    def tensors(self) -> Mapping[str, Tensor]:
        return {"first": self.first, "bias": self.bias, "second": self.second, "calls": self.calls}

    def groups(self) -> Sequence[UnitGroup]:
        hidden = len(self.bias)
        cost = {"macs": torch.full((hidden,), float(self.first.shape[1] + self.second.shape[0]))}
        members = (Member("first"), Member("bias"), Member("second", 1))
        return (UnitGroup("layer.hidden", hidden, members, cost),)

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        self.mask = masks["layer.hidden"]
        try:
            yield
        finally:
            self.mask = None

    def cut(self, keep: Keep) -> Perceptron:
        return self.permuted(keep["layer.hidden"].nonzero()[:, 0])

    def permuted(self, order: Tensor) -> Perceptron:
        return replace(self, first=self.first[order], bias=self.bias[order], second=self.second[:, order])

    def fitted(self, objective: Batches, steps: int = 200, rate: float = 0.02) -> Perceptron:
        """A copy that Adam has trained."""
        trained = replace(self, **{name: getattr(self, name).clone() for name in ("first", "bias", "second")})
        params = [trained.first.requires_grad_(), trained.bias.requires_grad_(), trained.second.requires_grad_()]
        optimizer = torch.optim.Adam(params, lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.stack(list(objective.losses(trained))).mean().backward()
            optimizer.step()
        for param in params:
            param.requires_grad_(False)
            param.grad = None
        return trained


@dataclass(eq=False)
class Batches:
    """Half the mean squared error of a target that maps inputs to outputs, over batches of `size` samples.

    Args:
        inputs: (samples, inputs).
        outputs: (samples, outputs).
        size: samples in a batch.
    """

    inputs: Tensor
    outputs: Tensor
    size: int

    def losses(self, target: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        for inputs, outputs in zip(self.inputs.split(self.size), self.outputs.split(self.size), strict=True):
            yield 0.5 * (target(inputs) - outputs).square().mean()


@dataclass(eq=False)
class LossOf:
    """The losses that functions give for a target, one a batch."""

    functions: tuple[Callable[[Any], Tensor], ...]

    def losses(self, target: Any) -> Iterator[Tensor]:
        for function in self.functions:
            yield function(target)


def quadratic(hessian: Tensor, minimum: Tensor) -> LossOf:
    """0.5 (w - minimum)^T hessian (w - minimum) over the effective weights of `Weights`."""

    def loss(target: Weights) -> Tensor:
        offset = target.effective() - minimum
        return 0.5 * offset @ hessian @ offset

    return LossOf((loss,))


def random_quadratic(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric (n, n) matrix, positive definite, and an (n,) vector, float64."""
    source = generator(seed)
    root = torch.randn(n, n, generator=source, dtype=torch.float64)
    return root @ root.T / n + torch.eye(n, dtype=torch.float64), torch.randn(n, generator=source, dtype=torch.float64)


def regression(samples: int = 96, inputs: int = 5, outputs: int = 2, size: int = 24, seed: int = 0) -> Batches:
    """What a small random network makes of random inputs, with a little noise."""
    source = generator(seed)
    points = torch.randn(samples, inputs, generator=source, dtype=torch.float64)
    noise = 0.05 * torch.randn(samples, outputs, generator=source, dtype=torch.float64)
    return Batches(points, Perceptron.random(inputs, 6, outputs, seed=seed + 100)(points) + noise, size)


class CubedOnce(torch.autograd.Function):
    """x^3 whose backward leaves torch, as a rasteriser's does: differentiable once, and silently so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.values = x.detach().numpy().copy()
        return torch.from_numpy(ctx.values**3)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> Tensor:
        return torch.from_numpy(3 * ctx.values**2 * incoming.numpy())


def mean_loss(objective: Any, target: Any) -> float:
    """The mean of an objective's losses."""
    with torch.no_grad():
        return float(torch.stack(list(objective.losses(target))).mean())


def removal_changes(target: Any, objective: Any) -> Tensor:
    """(units,) exact change of the mean loss when each unit of the only group goes alone, by masks."""
    (group,) = target.groups()
    before = mean_loss(objective, target)
    changes = []
    for unit in range(group.size):
        mask = torch.ones(group.size, dtype=torch.float64)
        mask[unit] = 0
        with target.masked({group.name: mask}):
            changes.append(mean_loss(objective, target) - before)
    return torch.tensor(changes, dtype=torch.float64)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([first.argsort().argsort().double(), second.argsort().argsort().double()])
    return float(torch.corrcoef(ranks)[0, 1])
