"""The statistics of activations, put right after pruning: those that batch norms hold, and those that layers make.

Layers are mended in the order in which they run, each on what the layers before it give once they are mended, so that
the result is exact for the calibration data, however it is cut into batches. The price is a forward pass as far as the
layer, for each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.maths import reject_nan
from secateur.surgery.cost import run_example
from secateur.surgery.cut import Cuts
from secateur.surgery.layers import join_name
from secateur.training.weights import evaluating

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Moments:
    """Mean and variance of each channel over samples that come in batches, in float64.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean: Float[Tensor, " channels"] = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    @torch.no_grad()
    def add(self, values: Float[Tensor, "*shape"], dim: int) -> None:
        """Take in values whose channels lie along `dim`.

        Raises:
            ValueError: the values hold NaN.
        """
        reject_nan(values, "activations")
        rows = values.detach().movedim(dim, -1).reshape(-1, len(self.mean)).double()
        if not len(rows):
            return
        self.mean, self._squares = self.mean.to(rows.device), self._squares.to(rows.device)
        mean = rows.mean(0)
        offset = mean - self.mean
        total = self.count + len(rows)
        # Chan et al. 1979: sums of squares about the mean of their own batch lose no digits when they are joined.
        self._squares = (
            self._squares + (rows - mean).square().sum(0) + offset.square() * (self.count * len(rows) / total)
        )
        self.mean = self.mean + offset * (len(rows) / total)
        self.count = total

    def variance(self, correction: int = 0) -> Float[Tensor, " channels"]:
        """The mean square about the mean; `correction=1` is the unbiased estimate."""
        return self._squares / max(1, self.count - correction)

    def std(self) -> Float[Tensor, " channels"]:
        """The root of the variance."""
        return self.variance().sqrt()


@dataclass(frozen=True)
class RecalibrateBatchNorm:
    """The running statistics of batch norms, estimated again: a cut or sparse network's activations are other ones.

    Each batch norm gets the mean and the unbiased variance, as torch's running statistics are, of its inputs over all
    of the calibration data, where those before it have theirs already. Weights and biases stay as they are. The first
    step of most recoveries without training (Li et al.: EagleEye, arXiv 2007.02491; Sparse Model Soups, arXiv
    2306.16788, after averaging; REPAIR, arXiv 2211.08403).
    """

    def __call__(self, module: nn.Module, calibration: Sequence[Any]) -> nn.Module:
        """Recalibrate in place, in evaluation mode, and give the module back.

        Args:
            module: a network; without batch norms that hold statistics it is left as it is.
            calibration: batches that it is called with: tensors, tuples of arguments or dicts of them by name.

        Raises:
            ValueError: there is no calibration data, or activations hold NaN.
        """
        norms = {
            name: part
            for name, part in module.named_modules()
            if isinstance(part, _BatchNorm) and part.running_mean is not None
        }
        for name, calls in _running_order(module, norms, calibration).items():
            norm = norms[name]
            moments = Moments(norm.num_features)
            _measure(module, norm, moments, calibration, calls, inputs=True)
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(moments.mean)
            norm.running_var.copy_(moments.variance(correction=1))
        return module


@dataclass(frozen=True)
class Renormalize:
    """Give each output channel of the layers the mean and the standard deviation that it has in the dense network.

    Pruned networks suffer variance collapse: activations shrink layer by layer. Qu and Horvath: Rethinking Model
    Re-Basin and Linear Mode Connectivity (arXiv 2402.05966) reset the pruned layers' outputs, before the activation,
    as REPAIR (Jordan et al., arXiv 2211.08403) does for merged networks:

        y' = (y - mean_pruned) * std_dense / std_pruned + mean_dense

    which is folded into the layer: rows of the weight are multiplied (so zeros stay), and the bias is set. A scale is
    above 0, so it passes through a following ReLU. `reshift` alone gives a constant back to channels that lost their
    inputs; channels whose deviation has all but vanished are only shifted, never blown up.

    Args:
        rescale: match the standard deviation.
        reshift: match the mean; of layers that have a bias.
        floor: share of the dense deviation under which a channel counts as dead, and is not scaled.
    """

    rescale: bool = True
    reshift: bool = True
    floor: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must be at least 0 and below 1, got {self.floor}")

    def __call__(
        self,
        pruned: nn.Module,
        dense: nn.Module,
        calibration: Sequence[Any],
        layers: Sequence[str] | None = None,
        cuts: Cuts | None = None,
    ) -> nn.Module:
        """Mend `pruned` in place, in evaluation mode, and give it back.

        Args:
            pruned: the network to mend.
            dense: what it was pruned from; its layers have the same names.
            calibration: batches that both are called with: tensors, tuples of arguments or dicts of them by name.
            layers: names of linear layers and convolutions; None: all that both networks have. A layer without a bias
                is only rescaled.
            cuts: of a network that was cut (`Network.cuts`): which of the dense channels each layer still has.

        Raises:
            ValueError: no calibration data; a layer is missing, is of another kind, or its channels do not fit.
        """
        mended = _layers(pruned, layers)
        if layers is None:
            known = _layers(dense, None)
            mended = {name: layer for name, layer in mended.items() if name in known}
        originals = _layers(dense, list(mended))
        targets = {name: Moments(layer.weight.shape[0]) for name, layer in originals.items()}
        order = _running_order(pruned, mended, calibration)
        with _watching(originals, targets), evaluating(dense):
            for batch in calibration:
                run_example(dense, batch)
        for name, calls in order.items():
            layer, kept = mended[name], _kept(name, cuts, targets[name].mean)
            mean, std = targets[name].mean[kept], targets[name].std()[kept]
            if len(mean) != layer.weight.shape[0]:
                raise ValueError(
                    f"layer {name!r} has {layer.weight.shape[0]} channels, {len(mean)} in the dense network: give cuts"
                )
            moments = Moments(len(mean))
            _measure(pruned, layer, moments, calibration, calls)
            self._mend(layer, moments, mean, std)
        return pruned

    @torch.no_grad()
    def _mend(self, layer: _Layer, now: Moments, mean: Tensor, std: Tensor) -> None:
        alive = (now.std() > self.floor * std) & (std > 0)
        ratio = std / now.std().where(alive, 1.0)
        scale = torch.where(alive, ratio, 1.0) if self.rescale else torch.ones_like(std)
        weight, bias = layer.weight, layer.bias
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)))
        if bias is None:
            return
        # Without reshift the mean is left as it is; the scale turns about it.
        goal = mean if self.reshift else now.mean
        bias.copy_(bias.double() * scale + (goal - now.mean * scale))


def _layers(module: nn.Module, names: Sequence[str] | None) -> dict[str, _Layer]:
    found = {name: part for name, part in module.named_modules() if isinstance(part, _Layer)}
    if names is None:
        return found
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{missing} are no linear layers or convolutions of the network; it has {sorted(found)}")
    return {name: found[name] for name in names}


def _kept(name: str, cuts: Cuts | None, like: Tensor) -> Tensor:
    rows = None if cuts is None else cuts.rows.get((join_name(name, "weight"), 0))
    return torch.arange(len(like), device=like.device) if rows is None else rows.rows.to(like.device)


def _channel_dim(layer: nn.Module, values: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return -1
    if isinstance(layer, _CONVOLUTIONS):
        return -layer.weight.dim() + 1  # unbatched inputs have a dimension fewer in front
    return 1


class _Reached(Exception):
    """The layer that was waited for has run; what comes after it is not needed."""


def _measure(
    module: nn.Module, layer: nn.Module, moments: Moments, calibration: Sequence[Any], calls: int, inputs: bool = False
) -> None:
    """Take the layer's outputs (or inputs) into the moments, running each batch as far as its last call."""
    left = 0

    def take(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal left
        values = args[0] if inputs else output
        moments.add(values, _channel_dim(part, values))
        left -= 1
        if not left:
            raise _Reached

    handle = layer.register_forward_hook(take)
    try:
        with evaluating(module):
            for batch in calibration:
                left = calls
                with suppress(_Reached):
                    run_example(module, batch)
    finally:
        handle.remove()


@contextmanager
def _watching(layers: Mapping[str, nn.Module], moments: Mapping[str, Moments]) -> Iterator[None]:
    """While the context is open, the layers' outputs are taken into the moments."""
    with ExitStack() as stack:
        for name, layer in layers.items():

            def take(part: nn.Module, _args: Any, output: Tensor, name: str = name) -> None:
                moments[name].add(output, _channel_dim(part, output))

            stack.callback(layer.register_forward_hook(take).remove)
        yield


def _running_order(module: nn.Module, layers: Mapping[str, nn.Module], calibration: Sequence[Any]) -> dict[str, int]:
    """Name of each layer that runs -> how often it does in a forward, in the order of their first calls."""
    if not len(calibration):
        raise ValueError("there is no calibration data")
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        calls[name] = calls.get(name, 0) + 1

    with ExitStack() as stack, evaluating(module):
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(lambda _part, _args, name=name: count(name)).remove)
        run_example(module, calibration[0])
    return calls
