"""Activation importance: what flows through a network while it looks at data.

The calibration is an `Objective`: its losses are computed without gradients, and hooks see what passes. One pass, with
running sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from secateur.importance.objective import Objective, required
from secateur.importance.synaptic import Network, _module_of
from secateur.units import Scores, fold

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


@dataclass(frozen=True)
class Wanda:
    """Sum of |w_ij| ||x_j|| over the weights that a unit owns, x_j the inputs that w_ij multiplies.

    Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models (arXiv 2306.11695, eq. 1). The
    norm is the root mean square over samples and positions, which differs from the paper's root of the sum by a factor
    a layer: no order within a layer changes, and data seen twice scores the same. The paper compares weights within an
    output's row: `NofM` with m the length of rows. Convolutions count each position of the kernel by what it sees, with
    zeros where it hangs over the border.

    Parameters of other layers than linear ones and convolutions, biases too, count as nothing.

    Args:
        params: names of the weights that count; None: of all linear layers and convolutions.
    """

    params: tuple[str, ...] | None = None

    def score(self, target: Network, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no objective or module, a layer was never run, a parameter in `params` is no weight of
                a linear layer or convolution, or a unit owns none.
        """
        layers = _layers(target, self.params, self)
        norms = input_norms(target, required(calibration, self), layers)
        tensors = target.tensors()
        elements = {
            name: (layer.weight.detach().abs() * norms[name].to(layer.weight)).reshape(tensors[name].shape)
            for name, layer in layers.items()
        }
        return {group.name: fold(elements, group) for group in target.groups()}


@dataclass(frozen=True)
class ActivationAttention:
    """Mean of |a_c|^power over samples and positions, a_c the activation that the unit's output becomes.

    Adaptive activation-based structured pruning (Zhao et al. 2022, arXiv 2201.10520) removes the filters of the
    smallest such attention. Units are outputs of linear layers and convolutions: those rows of their weights count that
    a group owns along dimension 0, and everything else that it owns counts as nothing.

    Args:
        power: 1 or 2 in the paper; 1 is a choice of ours.
        activation: what comes behind the layer, at once; a batch norm in between is not seen, unless it was folded in.
    """

    power: float = 1.0
    activation: Callable[[Tensor], Tensor] = torch.relu

    def score(self, target: Network, calibration: Objective | None = None) -> Scores:
        """(size,) scores of each group.

        Raises:
            ValueError: there is no objective or module, a layer was never run, or a unit is no output of a layer.
        """
        objective = required(calibration, self)
        layers = _layers(target, None, self)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}

        def watch(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
            channels = outputs.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)
            total = self.activation(channels).abs().float().pow(self.power).sum(dim=1)
            sums[name] = sums[name] + total if name in sums else total
            counts[name] = counts.get(name, 0) + channels.shape[1]

        run_watched(target, objective, layers, watch)
        tensors = target.tensors()
        means = {
            name: value / counts[name]
            for name, value in sums.items()
            if tensors[name].ndim > 1 and len(tensors[name]) == len(value)
        }
        scores = {}
        for group in target.groups():
            producers = tuple(member for member in group.members if member.dim == 0 and member.param in means)
            if not producers:
                raise ValueError(f"the units of group {group.name!r} are no outputs of a linear layer or convolution")
            scores[group.name] = fold(means, replace(group, members=producers))
        return scores


def block_influence(module: nn.Module, blocks: Sequence[str], run: Callable[[], object]) -> Float[Tensor, " blocks"]:
    """1 - cos(input, output) of each block, averaged over samples and positions: 0 for a block that does nothing.

    The block influence of ShortGPT (Men et al. 2024, arXiv 2403.03853, eq. 1), by which layer tickets can be drawn, too
    (When Layers Play the Lottery, catalogue 48, leaves the measure open). Vectors lie along the last dimension, or, of
    maps (B, C, H, W), along the channels.

    Args:
        module: holds the blocks.
        blocks: their names; the first input and the (first) output of each have one shape.
        run: runs the module on the calibration data, without gradients being needed.

    Returns:
        (blocks,) float32 in [0, 2].

    Raises:
        ValueError: a block was not run, or changes the shape.
    """
    sums: dict[str, float] = dict.fromkeys(blocks, 0.0)
    counts: dict[str, int] = dict.fromkeys(blocks, 0)

    def watch(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        if inputs.shape != outputs.shape:
            raise ValueError(f"block {name!r} maps {tuple(inputs.shape)} to {tuple(outputs.shape)}: no influence")
        cosine = F.cosine_similarity(inputs.double(), outputs.double(), dim=1 if inputs.ndim == 4 else -1)
        sums[name] += float((1 - cosine).sum())
        counts[name] += cosine.numel()

    with watched({name: module.get_submodule(name) for name in blocks}, watch), torch.no_grad():
        run()
    _check_run(counts)
    return torch.tensor([sums[name] / counts[name] for name in blocks])


def input_norms(target: Network, objective: Objective, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Name of a weight -> root mean square of the inputs that each of its entries multiplies.

    Args:
        target: runs the layers.
        objective: what it looks at.
        layers: name of the weight -> its linear layer or convolution.

    Returns:
        (in,) of linear layers, and (out, in / groups, *kernel) of convolutions; float64.

    Raises:
        ValueError: a layer was never run, or pads with anything but zeros.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        squares = inputs.double().square()
        if isinstance(layer, nn.Linear):
            squares = squares.reshape(-1, squares.shape[-1])
            total, count = squares.sum(dim=0), len(squares)
        else:
            total, count = _seen_by_kernel(layer, squares), outputs.numel() // len(layer.weight)  # type: ignore[arg-type]
        sums[name] = sums[name] + total if name in sums else total
        counts[name] = counts.get(name, 0) + count

    run_watched(target, objective, layers, watch)
    return {name: (value / counts[name]).sqrt() for name, value in sums.items()}


def _seen_by_kernel(layer: Any, squares: Tensor) -> Tensor:
    """(out, in / groups, *kernel) sums of the squared inputs over the positions where the kernel is laid.

    It is the gradient of a depthwise convolution's summed output by its weight.
    """
    if layer.padding_mode != "zeros":
        raise ValueError(f"inputs of a convolution that pads with {layer.padding_mode!r} are not known: zeros are")
    convolution = next(function for kind, function in _CONVOLUTIONS.items() if isinstance(layer, kind))
    with torch.enable_grad():
        shape = (layer.in_channels, 1, *layer.kernel_size)
        kernel = torch.zeros(shape, dtype=squares.dtype, device=squares.device, requires_grad=True)
        stride, padding, dilation = layer.stride, layer.padding, layer.dilation
        outputs = convolution(squares, kernel, None, stride, padding, dilation, layer.in_channels)
        (seen,) = torch.autograd.grad(outputs.sum(), kernel)
    by_group = seen.reshape(layer.groups, layer.in_channels // layer.groups, *layer.kernel_size)
    return by_group.repeat_interleave(layer.out_channels // layer.groups, dim=0)


Watch = Callable[[str, nn.Module, Tensor, Tensor], None]
"""(name, layer, its first input, its first output): called each time that a layer runs."""


def run_watched(target: Network, objective: Objective, layers: Mapping[str, nn.Module], watch: Watch) -> None:
    """Compute the objective's losses, without gradients, and show `watch` what the layers see and make.

    Raises:
        ValueError: a layer was never run.
    """
    counts = dict.fromkeys(layers, 0)

    def counted(name: str, layer: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
        counts[name] += 1
        watch(name, layer, inputs, outputs)

    with watched(layers, counted), torch.no_grad():
        for _ in objective.losses(target):
            pass
    _check_run(counts)


@contextmanager
def watched(layers: Mapping[str, nn.Module], watch: Watch) -> Iterator[None]:
    """While the context is open, `watch` sees every run of the layers."""

    def hook(name: str) -> Callable[..., None]:
        def see(layer: nn.Module, inputs: Any, outputs: Any) -> None:
            first = outputs if isinstance(outputs, Tensor) else outputs[0]
            watch(name, layer, inputs[0].detach(), first.detach())

        return see

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_run(counts: Mapping[str, int]) -> None:
    idle = [name for name, count in counts.items() if not count]
    if idle:
        raise ValueError(f"{idle} never ran: does the calibration reach all layers, and is it empty?")


def _layers(target: Network, params: tuple[str, ...] | None, criterion: object) -> dict[str, Any]:
    """Name of a weight in `target.tensors()` -> the linear layer or convolution that it belongs to."""
    module = _module_of(target, criterion)
    found = {
        f"{path}.weight" if path else "weight": layer
        for path, layer in module.named_modules()
        if isinstance(layer, (nn.Linear, *_CONVOLUTIONS))
    }
    names = [name for name in target.tensors() if name in found] if params is None else list(params)
    unknown = [name for name in names if name not in found or name not in target.tensors()]
    if unknown or not names:
        raise ValueError(f"{unknown or 'none'} of the target's tensors are weights of linear layers or convolutions")
    return {name: found[name] for name in names}
