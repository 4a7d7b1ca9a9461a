"""Retraining by few parameters: low-rank adapters that merge into sparse weights, biases, norms.

peft is not used: its adapters have no mask, and merging them fills a sparse weight. Here an adapter is a
parametrisation of the weight itself, so any layer can have one, and merging computes what the forward computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.training.seeding import generator_at

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Adapter(nn.Module):
    """B A, shaped like the weight; what it does to the weight is up to the method."""

    def __init__(self, b: Float[Tensor, "rows rank"], a: Float[Tensor, "rank columns"]) -> None:
        super().__init__()
        self.b = nn.Parameter(b)
        self.a = nn.Parameter(a)

    def product(self, weight: Tensor) -> Tensor:
        """(the weight's shape) B A."""
        return (self.b @ self.a).reshape(weight.shape)


class Added(Adapter):
    """W + scale B A, in all of W or only where `stays` is True."""

    def __init__(self, b: Tensor, a: Tensor, scale: float, stays: Tensor | None) -> None:
        super().__init__(b, a)
        self.scale = scale
        self.stays: Tensor | None
        self.register_buffer("stays", stays, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        adapted = weight + self.scale * self.product(weight)
        return adapted if self.stays is None else torch.where(self.stays, adapted, weight)


class Multiplied(Adapter):
    """W * (B A) / rank."""

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight * (self.product(weight) / len(self.a))


@dataclass(frozen=True)
class Lora:
    """Dense low-rank updates: W + alpha / rank * B A, with W frozen.

    Hu et al.: LoRA (arXiv 2106.09685). A is uniform within 1 / sqrt(columns), B is 0, so that training starts from the
    network as it is. Weights of more than two dimensions are (rows, the rest). For networks that were cut: in one with
    zeros, they fill.

    Args:
        rank: of B A; at most the least of rows and columns is used.
        alpha: the update is multiplied by alpha / rank; twice the rank is customary.
        seed: of A.
    """

    rank: int = 16
    alpha: float = 32.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")

    def adapter(self, weight: Tensor, index: int) -> Adapter:
        """The adapter of the index-th weight."""
        rank, rows, columns = self._sizes(weight)
        noise = torch.rand(rank, columns, generator=generator_at(self.seed, index), dtype=torch.float64)
        a = (2 * noise - 1) / math.sqrt(columns)
        return Added(weight.new_zeros(rows, rank), a.to(weight), self.alpha / rank, self._stays(weight))

    def _stays(self, weight: Tensor) -> Tensor | None:
        return None

    def _sizes(self, weight: Tensor) -> tuple[int, int, int]:
        rows, columns = len(weight), weight[0].numel()
        return min(self.rank, rows, columns), rows, columns


@dataclass(frozen=True)
class MaskLora(Lora):
    """Low-rank updates of the weights that stay: W + alpha / rank * M * (B A), M = (W != 0).

    Zimmer et al.: PERP (arXiv 2312.15230). The merged weight has zeros where W has.
    """

    def _stays(self, weight: Tensor) -> Tensor:
        return weight.detach() != 0


@dataclass(frozen=True)
class ScaleLora(Lora):
    """Low-rank factors of the weights: W * (B A) / rank, with A and B all ones at the start. `alpha` has no part.

    Zimmer et al.: PERP (arXiv 2312.15230). Its code starts from 1 / sqrt(rank) in A and B, without the division: the
    same product, but for rounding, which here leaves the start exactly as it was; the same step of an optimiser moves
    the product sqrt(rank) times less.
    """

    def adapter(self, weight: Tensor, index: int) -> Adapter:
        """The adapter of the index-th weight."""
        rank, rows, columns = self._sizes(weight)
        return Multiplied(weight.new_ones(rows, rank), weight.new_ones(rank, columns))


@dataclass(frozen=True)
class Perp:
    """Retrain biases, norms and adapters, and nothing else: well under a percent of a large network.

    Zimmer et al.: PERP, Rethinking the Prune-Retrain Paradigm in the Era of LLMs (arXiv 2312.15230).

        prepared = Perp(MaskLora(rank=16)).prepare(network)
        fit(Distillation(network, teacher), batches, steps=1000)
        prepared.merge()

    Args:
        adapters: of which kind, for linear layers, convolutions and embeddings; None: none.
        biases: whether biases train (of layers that are no norms).
        norms: whether weights and biases of norms train.
    """

    adapters: Lora | None = MaskLora()
    biases: bool = True
    norms: bool = True

    def prepare(self, module: nn.Module, layers: Sequence[str] | None = None) -> Prepared:
        """Freeze what does not retrain and attach the adapters, in place; the weights in force stay, bit for bit.

        Args:
            module: the pruned network.
            layers: names of the modules whose weight gets an adapter; None: every linear layer, convolution and
                embedding whose weight is not shared.

        Raises:
            ValueError: a layer is missing, has no weight of two dimensions or more, or shares it, or has an adapter.
        """
        chosen = {} if self.adapters is None else _adaptable(module, layers)
        orders = {name: tuple(layer._parameters) for name, layer in chosen.items()}
        prepared = Prepared(module, orders, sum(parameter.numel() for parameter in module.parameters()))
        for owner in module.modules():
            is_norm = isinstance(owner, _NORMS)
            for name, parameter in owner.named_parameters(recurse=False):
                prepared.required.append((parameter, parameter.requires_grad))
                trains = self.norms if is_norm else self.biases and name.endswith("bias")
                parameter.requires_grad_(trains and parameter.is_floating_point())
        for index, layer in enumerate(chosen.values()):
            assert self.adapters is not None and isinstance(layer.weight, Tensor)
            parametrize.register_parametrization(layer, "weight", self.adapters.adapter(layer.weight, index))
        return prepared


@dataclass
class Prepared:
    """A network that is ready to retrain.

    Args:
        module: the network.
        layers: name of each module that has an adapter -> the names of its parameters, in their order.
        total: parameters without the adapters.
        required: every parameter, and whether it required gradients before.
    """

    module: nn.Module
    layers: dict[str, tuple[str, ...]]
    total: int
    required: list[tuple[Tensor, bool]] = field(default_factory=list)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What trains."""
        return (parameter for parameter in self.module.parameters() if parameter.requires_grad)

    @property
    def share(self) -> float:
        """Parameters that train, adapters included, over the network's without adapters."""
        return sum(parameter.numel() for parameter in self.parameters()) / self.total

    def merge(self) -> nn.Module:
        """Put the adapted weights in the weights' places, so that the network has the shapes and names it had."""
        for name, order in self.layers.items():
            layer = self.module.get_submodule(name)
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            # torch puts the weight last; optimisers and files count parameters in their order.
            for own in order:
                layer.register_parameter(own, layer._parameters.pop(own))
        self.layers = {}
        for parameter, required in self.required:
            parameter.requires_grad_(required)
        return self.module


def _adaptable(module: nn.Module, names: Sequence[str] | None) -> dict[str, nn.Module]:
    uses: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)
    if names is None:
        found = {name: part for name, part in module.named_modules() if isinstance(part, kinds)}
        return {name: part for name, part in found.items() if uses.get(id(part.weight)) == 1}
    parts = dict(module.named_modules())
    missing = [name for name in names if name not in parts]
    if missing:
        raise ValueError(f"the network has no modules {missing}")
    chosen = {name: parts[name] for name in names}
    for name, part in chosen.items():
        weight = getattr(part, "weight", None)
        if parametrize.is_parametrized(part, "weight"):
            raise ValueError(f"layer {name!r} has an adapter already; merge it first")
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or not weight.is_floating_point():
            raise ValueError(f"layer {name!r} has no weight of two dimensions or more that could be adapted")
        if uses[id(weight)] > 1:
            raise ValueError(f"layer {name!r} shares its weight with another layer")
    return chosen
