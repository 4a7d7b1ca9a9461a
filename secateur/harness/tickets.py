"""Sparse networks that solve a task exactly: what `secateur.harness.planted` hides in dense ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.training.seeding import generator_at


@dataclass(frozen=True, eq=False)
class Ticket:
    """A sparse perceptron with ReLUs between its layers, and the cube of inputs on which it solves its task.

    Args:
        weights: one a layer, (outputs, inputs), of which the entries other than 0 are the ticket.
        biases: one a layer, (outputs,); they are not counted.
        low, high: each input is in [low, high].

    Raises:
        ValueError: shapes do not fit one another, or there is a hidden neuron that nothing enters or leaves, so that
            the same function has a smaller ticket.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(f"a bias a weight is needed, got {len(self.weights)} weights, {len(self.biases)} biases")
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if weight.ndim != 2 or bias.shape != weight.shape[:1]:
                raise ValueError(f"layer {layer} has a weight {tuple(weight.shape)} and a bias {tuple(bias.shape)}")
        for layer, (first, second) in enumerate(pairwise(self.weights)):
            if len(first) != second.shape[1]:
                raise ValueError(f"layer {layer} has {len(first)} outputs, the next one {second.shape[1]} inputs")
            idle = (first == 0).all(dim=1) | (second == 0).all(dim=0)
            if bool(idle.any()):
                raise ValueError(f"neuron {int(idle.nonzero()[0])} of layer {layer} has no weights in or out")

    def __call__(self, inputs: Float[Tensor, "samples inputs"]) -> Float[Tensor, "samples outputs"]:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = (inputs.relu() if layer else inputs) @ weight.T + bias
        return inputs

    def __len__(self) -> int:
        """Number of weights other than 0."""
        return sum(int((weight != 0).sum()) for weight in self.weights)

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs, hidden neurons of each layer, outputs."""
        return (self.weights[0].shape[1], *(len(weight) for weight in self.weights))

    def samples(self, count: int, seed: int = 0) -> Float[Tensor, "count inputs"]:
        """Uniform inputs, float64."""
        drawn = torch.rand(count, self.widths[0], generator=generator_at(seed, 0), dtype=torch.float64)
        return self.low + (self.high - self.low) * drawn


def relu_ticket(layers: int = 2) -> Ticket:
    """max(0, x) of one number: one neuron a layer, the sparsest ticket there is.

    Raises:
        ValueError: there are fewer than two layers.
    """
    if layers < 2:
        raise ValueError(f"max(0, x) takes at least 2 layers, got {layers}")
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    return Ticket((one,) * layers, (zero,) * layers)


def circle_ticket(radius: float = 0.7, pieces: int = 3) -> Ticket:
    """|x|^2 - radius^2 in the plane, each square interpolated linearly: negative inside a circle (nearly).

    Args:
        radius: of the circle.
        pieces: of each arm of each parabola, between 0 and 1.
    """
    knots = torch.arange(pieces, dtype=torch.float64) / pieces
    bends = _bends(torch.linspace(0, 1, pieces + 1, dtype=torch.float64)[:, None].square(), 1 / pieces)
    first = torch.zeros(4 * pieces, 2, dtype=torch.float64)
    for arm, (axis, sign) in enumerate([(0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)]):
        first[arm * pieces : (arm + 1) * pieces, axis] = sign
    offset = torch.tensor([-(radius**2)], dtype=torch.float64)
    return Ticket((first, bends.repeat(1, 4)), (-knots.repeat(4), offset))


def helix_ticket(pieces: int = 12, turns: float = 1.5) -> Ticket:
    """A number in [0, 1] -> a point on a widening helix in space, linear between `pieces` + 1 points.

    Args:
        pieces: straight ones.
        turns: about the axis.
    """
    place = torch.linspace(0, 1, pieces + 1, dtype=torch.float64)
    angle, reach = 2 * math.pi * turns * place, 0.5 + 0.5 * place
    points = torch.stack([reach * angle.cos(), reach * angle.sin(), place], dim=1)
    bends = _bends(points, 1 / pieces)
    # The height rises evenly: what rounding leaves of its bends is no part of the ticket.
    bends[bends.abs() < 1e-9] = 0
    ones = torch.ones(pieces, 1, dtype=torch.float64)
    return Ticket((ones, bends), (-place[:-1], points[0]), low=0.0)


def random_ticket(widths: tuple[int, ...], fan_in: int = 2, seed: int = 0) -> Ticket:
    """Normal weights between random neurons.

    Args:
        widths: inputs, hidden neurons of each layer, outputs.
        fan_in: weights that enter each neuron, or as many as there are; some neurons get more, so that none before
            them is idle.
        seed: the same seed gives the same ticket.
    """
    source = generator_at(seed, 0)
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for inputs, outputs in pairwise(widths):
        ranks = torch.rand(outputs, inputs, generator=source).argsort(dim=1)
        joined = ranks < fan_in
        if weights:
            idle = (~joined.any(dim=0)).nonzero()[:, 0]
            joined[torch.randint(outputs, (len(idle),), generator=source), idle] = True
        # Away from 0, so that no weight of the ticket can be told to be none.
        sizes = 0.5 + torch.randn(outputs, inputs, generator=source, dtype=torch.float64).abs()
        signs = torch.randint(2, (outputs, inputs), generator=source) * 2 - 1
        weights.append(joined * sizes * signs)
        biases.append(0.2 * torch.randn(outputs, generator=source, dtype=torch.float64))
    return Ticket(tuple(weights), tuple(biases))


def _bends(points: Float[Tensor, "knots outputs"], step: float) -> Float[Tensor, "outputs pieces"]:
    """Weights of relu(x - knot) that make a line through equidistant points, from the first of them on."""
    slopes = points.diff(dim=0) / step
    return torch.cat([slopes[:1], slopes.diff(dim=0)]).T.contiguous()
