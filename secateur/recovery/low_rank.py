"""Layers as products of two thinner ones: by the singular values of their weights, or of what they do to their inputs.

A linear layer's matrix is its weight; a convolution's is read in one of two ways, each of which is two convolutions:

- "channel": (out, in * height * width): `rank` filters of the old size, then a 1x1 convolution;
- "spatial": (in * height, out * width): a column of the old height, then a row of the old width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.maths import reject_nan
from secateur.solvers.gram import Gram

Reading = Literal["channel", "spatial"]
"""How a convolution's weight is a matrix."""

_Layer = nn.Linear | nn.Conv2d


def rank_for_energy(singular_values: Float[Tensor, " n"], energy: float) -> int:
    """The least rank whose squared singular values make up the share `energy` of their sum; at least 1.

    Args:
        singular_values: in descending order.
        energy: 0 to 1; 1 keeps all of them.
    """
    if energy >= 1:
        return len(singular_values)
    squares = singular_values.double().square().cumsum(0)
    return min(len(squares), 1 + int((squares < energy * squares[-1]).sum()))


@dataclass(frozen=True)
class Truncation:
    """How much of a matrix is kept: a rank, or a share of the energy.

    Args:
        energy: share of the sum of squared singular values; 0.99 in TRP's code.
        rank: instead of a share: the greatest rank.
        reading: of convolutions.
    """

    energy: float = 0.99
    rank: int | None = None
    reading: Reading = "channel"

    def __post_init__(self) -> None:
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be above 0 and at most 1, got {self.energy}")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if self.reading not in ("channel", "spatial"):
            raise ValueError(f'reading must be "channel" or "spatial", got {self.reading!r}')

    def factors(
        self, matrix: Float[Tensor, "rows columns"], gram: Gram | None = None, damp: float = 1e-3
    ) -> tuple[Float[Tensor, "rows rank"], Float[Tensor, "rank columns"]]:
        """B and A of the best B A of its rank: in squared error of the matrix, or, with a Gram matrix, of its outputs.

        With G = S S^T, the mean of x x^T over inputs, E |(W - B A) x|^2 is |W S - B A S|^2, so the truncated
        decomposition of W S, times S^-1, is the best there is (Wang et al.: SVD-LLM, arXiv 2403.07378),
        and the error is the sum of the squared singular values that went. float64 inside.

        Args:
            matrix: what is factorised.
            gram: of the inputs that the matrix multiplies.
            damp: share of the mean diagonal that is added to the Gram matrix's diagonal.

        Raises:
            ValueError: something holds NaN, or the Gram matrix is of another size or not positive definite.
        """
        reject_nan(matrix, "the weight")
        double = matrix.detach().double()
        root = None if gram is None else _root(gram, damp, double)
        left, values, right = torch.linalg.svd(double if root is None else double @ root, full_matrices=False)
        rank = min(self.rank, len(values)) if self.rank is not None else rank_for_energy(values, self.energy)
        balance = values[:rank].sqrt()
        right = balance[:, None] * right[:rank]
        if root is not None:
            right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
        return (left[:, :rank] * balance).to(matrix), right.to(matrix)

    def matrix(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "rows columns"]:
        """The weight of a layer, read as a matrix."""
        if weight.dim() == 4 and self.reading == "spatial":
            return weight.permute(1, 2, 0, 3).reshape(weight.shape[1] * weight.shape[2], -1)
        return weight.reshape(len(weight), -1)

    def weight(self, matrix: Float[Tensor, "rows columns"], shape: torch.Size) -> Float[Tensor, "*shape"]:
        """The reverse of `matrix`, for a weight of that shape."""
        if len(shape) == 4 and self.reading == "spatial":
            out, inputs, height, width = shape
            return matrix.reshape(inputs, height, out, width).permute(2, 0, 1, 3)
        return matrix.reshape(shape)


@dataclass(frozen=True)
class LowRank:
    """Replace layers by two thinner ones each, where that has fewer parameters.

    What is left of the rank is set by `truncation`; at full rank no layer has fewer parameters, so nothing changes.

    Args:
        truncation: how much is kept.
        damp: of Gram matrices (see `Truncation.factors`).
    """

    truncation: Truncation = Truncation()
    damp: float = 1e-3

    @torch.no_grad()
    def factorise(
        self,
        module: nn.Module,
        layers: Sequence[str] | None = None,
        grams: Mapping[str, Gram] | None = None,
    ) -> nn.Module:
        """A copy of the network with factorised layers, each an `nn.Sequential` of two layers.

        Args:
            module: a network; it is not changed.
            layers: names of linear layers and 2D convolutions without groups; None: all whose weight is not shared.
            grams: name -> Gram matrix of the layer's inputs, from `secateur.solvers.gram.input_grams`; layers that
                have one keep what matters to their outputs.

        Raises:
            ValueError: a layer is missing, is of another kind, shares its weight; a Gram matrix does not fit.
        """
        module = copy.deepcopy(module)
        for name, layer in _factorable(module, layers).items():
            thin = self._split(name, layer, None if grams is None else grams.get(name))
            if sum(p.numel() for p in thin.parameters()) < sum(p.numel() for p in layer.parameters()):
                if not name:
                    return thin.train(layer.training)
                parent, _, child = name.rpartition(".")
                setattr(module.get_submodule(parent), child, thin.train(layer.training))
        return module

    def _split(self, name: str, layer: _Layer, gram: Gram | None) -> nn.Sequential:
        matrix = self.truncation.matrix(layer.weight)
        spatial = isinstance(layer, nn.Conv2d) and self.truncation.reading == "spatial"
        if spatial and gram is not None:
            raise ValueError(f"layer {name!r}: the Gram matrix of its inputs has no spatial reading; use 'channel'")
        try:
            b, a = self.truncation.factors(matrix, gram, self.damp)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        if isinstance(layer, nn.Linear):
            return _linears(layer, b, a)
        return _column_row(layer, b, a) if spatial else _convolution_mix(layer, b, a)


class ThinLinear(nn.Sequential):
    """Two linear layers in the place of one, with the weight and bias that code may ask of it without calling it.

    torch's own transformer layers do so on their fast path.
    """

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The product of the two weights."""
        first, second = self[0].weight, self[1].weight
        assert isinstance(first, Tensor) and isinstance(second, Tensor)
        return second @ first

    @property
    def bias(self) -> Tensor | None:
        """The second layer's."""
        bias = self[1].bias
        assert bias is None or isinstance(bias, Tensor)
        return bias


class TrainedRankPruning(lightning.Callback):
    """Keeps layers near low rank while a module trains, so that factorising them at the end costs next to nothing.

    Xu et al.: Trained Rank Pruning (arXiv 1812.02402): every `every` steps each weight is replaced by its truncated
    decomposition U S V^T, and in that step lambda U V^T, a subgradient of the nuclear norm, is added to its gradient.
    The network is trained at full size between; `LowRank` with the same truncation splits its layers in the end.

    Args:
        truncation: how much each weight keeps.
        every: steps between truncations; 1 in its code.
        nuclear_weight: lambda; 0.0003 in its code.
        layers: names in the module in training; None: all that `LowRank` would take.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        truncation: Truncation | None = None,
        every: int = 20,
        nuclear_weight: float = 3e-4,
        layers: Sequence[str] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not nuclear_weight >= 0:
            raise ValueError(f"nuclear_weight must be at least 0, got {nuclear_weight}")
        self.truncation, self.every, self.nuclear_weight = truncation or Truncation(), every, nuclear_weight
        self.layers = layers
        self.step = 0
        self.ranks: dict[str, int] = {}
        self._subgradients: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.step % self.every == 0:
            self._truncate(pl_module)
        self.step += 1

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for name, subgradient in self._subgradients.items():
            gradient = pl_module.get_submodule(name).weight.grad
            if isinstance(gradient, Tensor):
                gradient.add_(subgradient, alpha=self.nuclear_weight)
        self._subgradients = {}

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._truncate(pl_module)
        self._subgradients = {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "ranks": dict(self.ranks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.ranks = state_dict["step"], dict(state_dict["ranks"])

    @torch.no_grad()
    def _truncate(self, module: nn.Module) -> None:
        for name, layer in _factorable(module, self.layers).items():
            matrix = self.truncation.matrix(layer.weight)
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            limit = self.truncation.rank
            rank = min(limit, len(values)) if limit else rank_for_energy(values, self.truncation.energy)
            self.ranks[name] = rank
            left, right = left[:, :rank], right[:rank]
            if rank < len(values):
                layer.weight.copy_(self.truncation.weight((left * values[:rank]) @ right, layer.weight.shape))
            if self.nuclear_weight:
                self._subgradients[name] = self.truncation.weight(left @ right, layer.weight.shape)


def _root(gram: Gram, damp: float, matrix: Tensor) -> Float[Tensor, "d d"]:
    """The lower triangle S of G = S S^T."""
    if len(gram.mean) != matrix.shape[1]:
        raise ValueError(f"the Gram matrix is of {len(gram.mean)} inputs, the weight has {matrix.shape[1]}")
    root, failed = torch.linalg.cholesky_ex(gram.damped(damp).to(matrix))
    if int(failed):
        raise ValueError("the Gram matrix is not positive definite; raise damp")
    return root


def _factorable(module: nn.Module, names: Sequence[str] | None) -> dict[str, _Layer]:
    uses: dict[int, int] = {}
    for _, parameter in module.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    parts = dict(module.named_modules())
    found = {
        name: part
        for name, part in parts.items()
        # Subclasses are left alone: attention reads the weight of its own kind of linear layer without calling it.
        if (type(part) is nn.Linear or (type(part) is nn.Conv2d and part.groups == 1))
        and uses.get(id(part.weight)) == 1
    }
    wrong = [name for name in names or () if name not in found]
    if wrong:
        raise ValueError(
            f"{wrong} are no linear layers or 2D convolutions without groups with weights of their own; "
            f"the network has {sorted(found)}"
        )
    return found if names is None else {name: found[name] for name in names}


def _linears(layer: nn.Linear, b: Tensor, a: Tensor) -> nn.Sequential:
    options: dict[str, Any] = {"device": b.device, "dtype": b.dtype}
    first = nn.utils.skip_init(nn.Linear, layer.in_features, len(a), bias=False, **options)
    second = nn.utils.skip_init(nn.Linear, len(a), layer.out_features, bias=layer.bias is not None, **options)
    return ThinLinear(*_filled(layer, first, a, second, b))


def _convolution_mix(layer: nn.Conv2d, b: Tensor, a: Tensor) -> nn.Sequential:
    rank = len(a)
    first = _convolution(layer, layer.in_channels, rank, (0, 1), bias=False)
    second = _convolution(layer, rank, layer.out_channels, (), bias=layer.bias is not None)
    return _filled(layer, first, a.reshape(first.weight.shape), second, b[:, :, None, None])


def _column_row(layer: nn.Conv2d, b: Tensor, a: Tensor) -> nn.Sequential:
    """(in * height, rank) and (rank, out * width) as a column and a row."""
    rank = len(a)
    first = _convolution(layer, layer.in_channels, rank, (0,), bias=False)
    second = _convolution(layer, rank, layer.out_channels, (1,), bias=layer.bias is not None)
    column = b.reshape(layer.in_channels, layer.kernel_size[0], rank).permute(2, 0, 1)[..., None]
    row = a.reshape(rank, layer.out_channels, layer.kernel_size[1]).permute(1, 0, 2)[:, :, None, :]
    return _filled(layer, first, column, second, row)


def _convolution(layer: nn.Conv2d, inputs: int, outputs: int, axes: tuple[int, ...], bias: bool) -> nn.Conv2d:
    """A convolution that does along `axes` (0: height, 1: width) what the layer does, and nothing along the others."""

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
        kept = [values[axis] if axis in axes else neutral for axis in (0, 1)]
        return kept[0], kept[1]

    padding = layer.padding
    return nn.utils.skip_init(
        nn.Conv2d,
        inputs,
        outputs,
        along(layer.kernel_size, 1),
        stride=along(layer.stride, 1),
        padding=padding if isinstance(padding, str) else along(padding, 0),
        dilation=along(layer.dilation, 1),
        padding_mode=layer.padding_mode,
        bias=bias,
        device=layer.weight.device,
        dtype=layer.weight.dtype,
    )


def _filled(layer: _Layer, first: nn.Module, a: Tensor, second: nn.Module, b: Tensor) -> nn.Sequential:
    assert isinstance(first.weight, Tensor) and isinstance(second.weight, Tensor)
    first.weight.copy_(a)
    second.weight.copy_(b)
    if layer.bias is not None:
        assert isinstance(second.bias, Tensor)
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)
