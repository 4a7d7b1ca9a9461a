"""What a layer sees: the second moment of its inputs, streamed, which is the Hessian of its output's squared error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.maths import reject_nan


class Gram:
    """The mean of x x^T over samples that come in batches; (d_in, d_in) is all that is held.

    The mean squared change of a layer's output, 0.5 E |(W - W') x|^2, is 0.5 tr (W - W') G (W - W')^T: G is the Hessian
    of each row of the weight.

    Args:
        d_in: number of input features.
        device: where the matrix lies.
        dtype: what the mean is held in.
    """

    def __init__(self, d_in: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> None:
        if d_in < 1:
            raise ValueError(f"a Gram matrix needs at least one input feature, got {d_in}")
        self.mean: Float[Tensor, "d_in d_in"] = torch.zeros(d_in, d_in, device=device, dtype=dtype)
        self.samples = 0

    @torch.no_grad()
    def add(self, inputs: Float[Tensor, "*batch d_in"]) -> Self:
        """Take another batch into the mean.

        Raises:
            ValueError: the last dimension is not d_in, or the batch holds NaN or infinities.
        """
        d_in = len(self.mean)
        if not inputs.ndim or inputs.shape[-1] != d_in:
            raise ValueError(f"inputs must end in {d_in} features, got shape {tuple(inputs.shape)}")
        flat = inputs.detach().reshape(-1, d_in).to(self.mean)
        wrong = flat.numel() - int(torch.isfinite(flat).sum())
        if wrong:
            raise ValueError(f"inputs hold {wrong} values among {flat.numel()} that are NaN or infinite")
        if len(flat):
            self.samples += len(flat)
            # A running mean: a sum over millions of samples would swallow the later ones in float32.
            self.mean.mul_(1 - len(flat) / self.samples).addmm_(flat.T, flat, alpha=1 / self.samples)
        return self

    def damped(self, damp: float = 0.01) -> Float[Tensor, "d_in d_in"]:
        """The mean plus `damp` times the mean of its diagonal on the diagonal (SparseGPT's percdamp, 0.01 there).

        Raises:
            ValueError: no sample was added, all inputs are 0, or damp is negative.
        """
        if not self.samples:
            raise ValueError("the Gram matrix is empty: add inputs first")
        return damped(self.mean, damp)


def damped(hessian: Float[Tensor, "d d"], damp: float) -> Float[Tensor, "d d"]:
    """The matrix plus `damp` times the mean of its diagonal on the diagonal; symmetric bit for bit.

    Raises:
        ValueError: it is not square, holds NaN, its diagonal is not positive on average, or damp is negative.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"a Hessian must be square, got shape {tuple(hessian.shape)}")
    if not damp >= 0:
        raise ValueError(f"damp must not be negative, got {damp}")
    reject_nan(hessian, "the Hessian")
    scale = float(hessian.diagonal().mean())
    if not scale > 0:
        raise ValueError(f"the Hessian's diagonal must be positive on average, got {scale}: are all inputs 0?")
    result = (hessian + hessian.T) / 2
    result.diagonal().add_(damp * scale)
    return result


@contextmanager
def input_grams(model: nn.Module, layers: Mapping[str, nn.Module] | None = None) -> Iterator[dict[str, Gram]]:
    """While the context is open, each forward pass adds to the Gram matrices of what the layers are given.

    A convolution sees patches, so that its weight, flattened to (out, in * kernel), is a linear layer's.

    Args:
        model: what is run; its output is left as it is.
        layers: name -> module of `model`; None takes every `nn.Linear`, and every `nn.Conv2d` without groups.

    Yields:
        Name -> Gram, in float32.

    Raises:
        ValueError: a layer is neither of the two, or a convolution has groups.
    """
    chosen = _linear_layers(model) if layers is None else dict(layers)
    grams = {name: Gram(_width(name, layer), next(layer.parameters()).device) for name, layer in chosen.items()}
    handles = []
    try:
        for name, layer in chosen.items():
            handles.append(layer.register_forward_pre_hook(partial(_add_inputs, grams[name])))
        yield grams
    finally:
        for handle in handles:
            handle.remove()


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def _width(name: str, layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(f"layer {name!r} must be nn.Linear or nn.Conv2d, got {type(layer).__name__}")
    if layer.groups != 1:
        raise ValueError(f"layer {name!r} has {layer.groups} groups, each of which sees inputs of its own")
    return layer.weight[0].numel()


def layer_inputs(layer: nn.Module, x: Tensor) -> Float[Tensor, "... d_in"]:
    """What the layer's weight, flattened to (out, d_in), multiplies: x, or the patches of a convolution."""
    return _patches(layer, x) if isinstance(layer, nn.Conv2d) else x


def _add_inputs(gram: Gram, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    (x,) = inputs
    gram.add(layer_inputs(layer, x))


def _patches(layer: nn.Conv2d, images: Float[Tensor, "batch channels height width"]) -> Tensor:
    """(batch, places, channels * kernel) what the convolution multiplies with its weight."""
    border = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    images = nn.functional.pad(images, border, mode=mode)
    patches = nn.Unfold(layer.kernel_size, layer.dilation, 0, layer.stride)(images)
    return patches.transpose(1, 2)
