"""Least-squares weights for the 1x1 convolutions that stand in for larger ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.surgery.cost import evaluating
from secateur.surgery.network import Network
from secateur.surgery.stand_in import Pointwise

Run = Callable[[nn.Module, Any], Any]


@torch.no_grad()
def refit_pointwise(network: Network, dense: nn.Module, batches: Iterable[Any], run: Run, damping: float = 1e-3) -> int:
    """Give each 1x1 stand-in, in place, the weights that come nearest to the convolution in whose place it is.

    On the inputs that the dense model's convolution sees, the squared error of outputs is the least that a 1x1
    convolution with a bias can have, plus a pull to the weights that it has (ridge regression, float64).

    Args:
        network: the pruned network.
        dense: the model that it was cut from; its convolutions' inputs and outputs are the data.
        batches: what `run` is given, one after the other.
        run: calls the dense model on a batch.
        damping: strength of the pull, in mean squared inputs.

    Returns:
        How many stand-ins were fitted.

    Raises:
        ValueError: there are no batches, or a convolution is not reached by them.
    """
    fits = {name: _Fit(layer) for name, layer in network.module.named_modules() if isinstance(layer, Pointwise)}
    handles = [dense.get_submodule(name).register_forward_hook(fit.watch) for name, fit in fits.items()]
    try:
        with evaluating(dense):
            for batch in batches:
                run(dense, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, fit in fits.items():
        if fit.moments is None:
            raise ValueError(f"no batch reached {name!r}, so there is nothing to fit its stand-in to")
        fit.solve(damping)
    return len(fits)


class _Fit:
    """Moments of a stand-in's inputs, with a constant 1 behind them, and of what its own outputs lack."""

    def __init__(self, layer: Pointwise) -> None:
        self.layer = layer
        self.moments: Tensor | None = None
        self.lacks: Tensor | None = None

    def watch(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        layer = self.layer
        x = layer.centres(args[0]).movedim(1, -1).flatten(0, -2).double()
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        lack = (output - layer(args[0])).movedim(1, -1).flatten(0, -2).double()
        moments, lacks = x.T @ x, x.T @ lack
        self.moments = moments if self.moments is None else self.moments + moments
        self.lacks = lacks if self.lacks is None else self.lacks + lacks

    def solve(self, damping: float) -> None:
        assert self.moments is not None and self.lacks is not None
        moments = self.moments.clone()
        inputs = len(moments) - 1
        moments.diagonal()[:inputs] += damping * moments.diagonal()[:inputs].mean()
        if self.layer.bias is None:
            change = torch.linalg.solve(moments[:inputs, :inputs], self.lacks[:inputs])
        else:
            change = torch.linalg.solve(moments, self.lacks)
            self.layer.bias.add_(change[inputs].to(self.layer.bias))
        self.layer.weight.add_(change[:inputs].T[:, :, None, None].to(self.layer.weight))
