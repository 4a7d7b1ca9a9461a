"""Planted tickets: problems whose answer is known, and how much of it a criterion finds.

    hunt = seek(Magnitude(), lambda seed: plant(helix_ticket(), (1, 40, 3), seed), seeds=range(5))
    print(hunt.recall, "of the ticket; a random choice finds", hunt.density)

Fischer and Burkholz, Plant 'n' Seek: Can You Find the Winning Ticket? (arXiv 2111.11153), plant sparse networks in
dense random ones. `planted_regression` is the same question to a trained linear model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.granularity import Weights
from secateur.harness.tickets import Ticket
from secateur.selection import keep_top
from secateur.training.seeding import generator_at
from secateur.training.weights import evaluating
from secateur.units import Criterion, Keep, Scores, UnitGroup, check_keep


@dataclass(frozen=True, eq=False)
class Planted:
    """A dense network, the weights in it that are the answer, and data: an `Objective` of half the mean squared error.

    Args:
        network: float64.
        keep: parameter name -> (weights,) bool, True for the ticket's.
        inputs: (samples, inputs).
        outputs: (samples, outputs).
        batch: samples in a batch.
        scale: the outputs are the ticket's, times this.
    """

    network: nn.Module
    keep: Keep
    inputs: Tensor
    outputs: Tensor
    batch: int = 64
    scale: float = 1.0

    def losses(self, target: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """The loss of each batch."""
        for inputs, outputs in zip(self.inputs.split(self.batch), self.outputs.split(self.batch), strict=True):
            yield 0.5 * (target(inputs) - outputs).square().mean()

    def target(self) -> Weights:
        """The network's weights as units, every one free to go."""
        return Weights(self.network, min_keep=0)

    def loss(self, keep: Keep) -> float:
        """Half the mean squared error over all samples with these weights alone."""
        target = self.target()
        check_keep(keep, target.groups())
        with evaluating(self.network), target.masked(dict(keep)):
            return float(0.5 * (target(self.inputs) - self.outputs).square().mean())

    @property
    def planted(self) -> int:
        """Number of weights of the ticket."""
        return sum(int(mask.sum()) for mask in self.keep.values())

    @property
    def density(self) -> float:
        """Share of all weights that are the ticket's: the recall of a random choice of as many."""
        return self.planted / sum(len(mask) for mask in self.keep.values())


def plant(ticket: Ticket, widths: tuple[int, ...], seed: int = 0, samples: int = 256) -> Planted:
    """Hide a ticket in a random network with ReLUs: under its mask the network is the ticket's function.

    After the planting of arXiv 2111.11153: layer by layer from the input, each neuron of the ticket takes
    the place of the random neuron whose weights on the same inputs are nearest, and overwrites those; it is scaled
    first, and the weights that leave it by the inverse, which changes nothing, as ReLUs are homogeneous. Ours scales
    each hidden neuron's weights to the root mean square of the random ones (He's initialisation), so that size does not
    give them away; and so the last layer as a whole, whose factor is the task's: the outputs are `scale` times the
    ticket's.

    Args:
        ticket: its inputs and outputs are all of the network's.
        widths: of the network: inputs, hidden neurons of each layer, outputs.
        seed: of the random weights and of the samples.
        samples: how many inputs to draw.

    Raises:
        ValueError: the ticket has other inputs, outputs or layers than the network, or a wider layer.
    """
    own = ticket.widths
    if len(own) != len(widths) or own[0] != widths[0] or own[-1] != widths[-1]:
        raise ValueError(f"a ticket of widths {own} needs as many layers, inputs and outputs, got {widths}")
    if any(narrow > wide for narrow, wide in zip(own, widths, strict=True)):
        raise ValueError(f"a ticket of widths {own} does not fit into {widths}")
    source = generator_at(seed, 1)
    layers: list[nn.Module] = []
    keep: Keep = {}
    places, scales = torch.arange(own[0]), torch.ones(own[0], dtype=torch.float64)
    for number, (weight, bias) in enumerate(zip(ticket.weights, ticket.biases, strict=True)):
        linear = _random_linear(widths[number], widths[number + 1], source)
        wanted, last = weight / scales, number + 1 == len(ticket.weights)
        scales = _scales(wanted.reshape(1, -1) if last else wanted, widths[number]).expand(len(weight))
        wanted, shift = wanted * scales[:, None], bias * scales
        before, places = places, torch.arange(len(weight)) if last else _nearest(wanted, shift, linear, places)
        mask = torch.zeros_like(linear.weight, dtype=torch.bool)
        mask[places[:, None], before] = wanted != 0
        with torch.no_grad():
            linear.weight[places[:, None], before] = torch.where(
                wanted != 0, wanted, linear.weight[places[:, None], before]
            )
            linear.bias[places] = shift
        keep[f"{2 * number}.weight"] = mask.flatten()
        layers += [linear, nn.ReLU()]
    inputs = ticket.samples(samples, seed)
    scale = float(scales[0])
    return Planted(nn.Sequential(*layers[:-1]), keep, inputs, scale * ticket(inputs), scale=scale)


def planted_regression(
    features: int = 60,
    support: int = 6,
    samples: int = 240,
    *,
    spread: float = 1.0,
    correlation: float = 0.0,
    noise: float = 0.1,
    seed: int = 0,
) -> Planted:
    """A linear model of which few coefficients are other than 0, fitted by least squares.

    With features of one size, the largest coefficients are the answer. With `spread` they are not: a coefficient is
    large because its feature is small; each planted feature still contributes 1 to 2 to the output, so that what looks
    at the data finds them all.

    Args:
        features: coefficients.
        support: how many are planted.
        samples: more than features.
        spread: feature sizes are between 1 / spread and spread, uniform in their logarithm.
        correlation: of each two features, 0 to below 1.
        noise: standard deviation that is added to the output.
        seed: of everything.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < support <= features < samples:
        raise ValueError(f"0 < support <= features < samples is needed, got {support}, {features} and {samples}")
    if not 0 <= correlation < 1 or spread < 1:
        raise ValueError(f"correlation in [0, 1) and spread >= 1 are needed, got {correlation} and {spread}")
    source = generator_at(seed, 0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64)

    sizes = spread ** (2 * torch.rand(features, generator=source, dtype=torch.float64) - 1)
    shared = correlation**0.5 * normal(samples, 1) + (1 - correlation) ** 0.5 * normal(samples, features)
    chosen = torch.zeros(features, dtype=torch.bool)
    chosen[torch.randperm(features, generator=source)[:support]] = True
    signs = torch.randint(2, (features,), generator=source) * 2 - 1
    parts = signs * (1 + torch.rand(features, generator=source, dtype=torch.float64)) * chosen
    inputs = shared * sizes
    outputs = shared @ parts[:, None] + noise * normal(samples, 1)
    linear = nn.utils.skip_init(nn.Linear, features, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        # The default driver's last bits change from call to call.
        linear.weight.copy_(torch.linalg.lstsq(inputs, outputs, driver="gels").solution.T)
    return Planted(nn.Sequential(linear), {"0.weight": chosen}, inputs, outputs)


@dataclass(frozen=True)
class Found:
    """What a criterion found of one ticket.

    Args:
        seed: of the problem.
        planted: weights of the ticket.
        kept: weights that were kept.
        recall: share of the ticket that was kept.
        precision: share of what was kept that is the ticket's.
        by_group: recall in each parameter that holds some of the ticket.
        loss: half the mean squared error of what was kept.
        ticket_loss: that of the ticket.
        density: the ticket's share of all weights.
    """

    seed: int
    planted: int
    kept: int
    recall: float
    precision: float
    by_group: dict[str, float]
    loss: float
    ticket_loss: float
    density: float


@dataclass(frozen=True)
class Hunt:
    """What a criterion found over seeds."""

    found: tuple[Found, ...]

    @property
    def recall(self) -> float:
        """Mean share of the ticket that was kept."""
        return math.fsum(one.recall for one in self.found) / len(self.found)

    @property
    def precision(self) -> float:
        """Mean share of what was kept that is the ticket's."""
        return math.fsum(one.precision for one in self.found) / len(self.found)

    @property
    def density(self) -> float:
        """Mean share of all weights that is the ticket's: the recall of a random choice of as many."""
        return math.fsum(one.density for one in self.found) / len(self.found)


def seek(
    criterion: Criterion,
    make: Callable[[int], Planted],
    seeds: Iterable[int],
    *,
    train: Callable[[Planted], Any] | None = None,
    times: float = 1.0,
    per_layer: bool = False,
) -> Hunt:
    """How much of planted tickets a criterion finds: the question of Plant 'n' Seek (arXiv 2111.11153).

    A network that was trained may have other tickets of the same size: low recall at a loss below `ticket_loss` is one.

    Args:
        criterion: scores the weights; its calibration is the problem.
        make: the problem of a seed.
        seeds: a problem each.
        train: trains `problem.network` in place before it is scored; None: it is scored as it was made.
        times: how many weights are kept, in numbers of planted ones, rounded down; at 1 recall is precision.
        per_layer: each layer keeps that many times its own planted ones, so that only the choice within layers counts.

    Raises:
        ValueError: there are no seeds, or `times` is so small that nothing is kept.
    """
    found = []
    for seed in seeds:
        problem = make(seed)
        if train is not None:
            train(problem)
        target = problem.target()
        keep = _chosen(criterion.score(target, problem), target.groups(), problem, times, per_layer)
        found.append(compare(keep, problem, seed))
    if not found:
        raise ValueError("there are no seeds: at least one is needed")
    return Hunt(tuple(found))


def compare(keep: Keep, problem: Planted, seed: int = 0) -> Found:
    """What a choice of weights has of the ticket.

    Raises:
        ValueError: the choice does not fit the network, or is empty.
    """
    check_keep(keep, problem.target().groups())
    kept = sum(int(mask.sum()) for mask in keep.values())
    if not kept:
        raise ValueError("no weight is kept: precision has no meaning")
    hits = {name: int((keep[name].cpu() & mask).sum()) for name, mask in problem.keep.items()}
    counts = {name: int(mask.sum()) for name, mask in problem.keep.items()}
    return Found(
        seed,
        problem.planted,
        kept,
        recall=sum(hits.values()) / problem.planted,
        precision=sum(hits.values()) / kept,
        by_group={name: hits[name] / count for name, count in counts.items() if count},
        loss=problem.loss(keep),
        ticket_loss=problem.loss(problem.keep),
        density=problem.density,
    )


def _chosen(scores: Scores, groups: Iterable[UnitGroup], problem: Planted, times: float, per_layer: bool) -> Keep:
    keep: Keep = {}
    for contest in [[group] for group in groups] if per_layer else [list(groups)]:
        planted = sum(int(problem.keep[group.name].sum()) for group in contest)
        keep |= keep_top(scores, contest, Budget(limit=math.floor(times * planted)))
    return keep


def _random_linear(inputs: int, outputs: int, source: torch.Generator) -> nn.Linear:
    """Weights as He et al. (arXiv 1502.01852) initialise them, biases uniform below 1 / sqrt(inputs)."""
    linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.normal_(0, (2 / inputs) ** 0.5, generator=source)
        linear.bias.uniform_(-(inputs**-0.5), inputs**-0.5, generator=source)
    return linear


def _scales(weight: Float[Tensor, "neurons inputs"], inputs: int) -> Float[Tensor, " neurons"]:
    """What brings the entries other than 0 of each row to the root mean square of He's initialisation."""
    entries = (weight != 0).sum(dim=1)
    return (2 * entries / inputs).sqrt() / weight.norm(dim=1)


def _nearest(
    weight: Float[Tensor, "neurons inputs"], bias: Float[Tensor, " neurons"], linear: nn.Linear, columns: Tensor
) -> Tensor:
    """A row of the layer for each neuron, none twice: the nearest one on the inputs that the neuron has."""
    random = linear.weight.detach()[:, columns]
    free = torch.ones(len(random), dtype=torch.bool)
    places = []
    for row, shift in zip(weight, bias, strict=True):
        away = ((random - row).square() * (row != 0)).sum(dim=1) + (linear.bias.detach() - shift).square()
        place = int(away.masked_fill(~free, torch.inf).argmin())
        free[place] = False
        places.append(place)
    return torch.tensor(places)
