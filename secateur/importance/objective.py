"""What gradient criteria look through: a loss, batch by batch, and the tensors that it is differentiated by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.units import Prunable


class Objective(Protocol):
    """A loss over calibration data, batch by batch: the calibration of every gradient criterion."""

    def losses(self, target: Any, /) -> Iterable[Tensor]:
        """The loss of each batch (a camera's image, a minibatch), one at a time and computed only when it is asked for.

        A loss is one number that is differentiable in `target.tensors()` and, inside `target.masked(...)`, in the
        masks; its graph is its own, so that it can be freed before the next batch. Every call gives the same losses in
        the same order: noise comes from a fixed seed, and layers that behave otherwise in training (dropout, batch
        norm) are in evaluation mode. How the data is batched matters to criteria that take absolute values or squares
        batch by batch.
        """
        ...


def _itself(output: Any) -> Tensor:
    return output


@dataclass(frozen=True, eq=False)
class Supervised:
    """The loss of a network on batches of inputs and what they should become: an `Objective`.

    The target's module is in evaluation mode while a loss is computed, whatever its mode is.

    Args:
        batches: (inputs, targets) each; inputs are one argument of the target.
        loss: (output, targets) -> number.
    """

    batches: Sequence[tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy

    def losses(self, target: Any, /) -> Iterator[Tensor]:
        """The loss of each batch."""
        for inputs, wanted in self.batches:
            with _evaluation(target):
                loss = self.loss(target(inputs), wanted)
            yield loss


@dataclass(frozen=True, eq=False)
class Disturbed:
    """The mean squared error between outputs and the same outputs with noise: an `Objective` that needs no labels.

    Disturbed Taylor importance of SlimSAM (Chen et al. 2024, arXiv 2312.05284): against its own outputs a network has
    no gradient, so the noise, of a standard deviation of 0.01 in the released code, makes one. Its mean over the draws
    is 0, and the mean of its square is 4 sigma^2 / n^2 times the diagonal of J^T J, n entries in an output: take
    criteria that square batch by batch (`Taylor("square")`, `Fisher`), or as many batches as the paper has (1,000).

    Args:
        inputs: batches, one argument of the target each.
        sigma: standard deviation of the noise; 0 makes all gradients 0.
        seed: of the noise.
        read: output of the target -> the tensor that is compared, where the output holds several.
    """

    inputs: Sequence[Any]
    sigma: float = 0.01
    seed: int = 0
    read: Callable[[Any], Tensor] = _itself

    def losses(self, target: Any, /) -> Iterator[Tensor]:
        """The loss of each batch."""
        generator = torch.Generator().manual_seed(self.seed)
        for inputs in self.inputs:
            with _evaluation(target):
                output = self.read(target(inputs))
            noise = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
            yield functional.mse_loss(output, output.detach() + self.sigma * noise)


@contextmanager
def _evaluation(target: Any) -> Iterator[None]:
    """Evaluation mode of the target's module, if it has one; then each layer is in the mode that it was in."""
    module = getattr(target, "module", None)
    training = [child for child in module.modules() if child.training] if isinstance(module, nn.Module) else []
    for child in training:
        child.training = False
    try:
        yield
    finally:
        for child in training:
            child.training = True


def required(calibration: Objective | None, criterion: object) -> Objective:
    """The calibration, or ValueError if there is none."""
    if calibration is None:
        raise ValueError(f"{criterion} needs an Objective as its calibration, got None")
    return calibration


@contextmanager
def differentiable(target: Prunable, params: Sequence[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Let the target's own tensors require a gradient while the context is open, frozen ones too.

    Args:
        target: its tensors; integer (quantised) and empty ones are passed over.
        params: names of the parameters; None means all.

    Yields:
        Name -> the target's tensor itself.

    Raises:
        ValueError: `params` names a parameter that the target lacks.
    """
    tensors = target.tensors()
    names = list(tensors) if params is None else list(params)
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"no parameters {missing}; the target has {sorted(tensors)}")
    chosen = {name: tensors[name] for name in names if tensors[name].is_floating_point() and tensors[name].numel()}
    frozen = [tensor for tensor in chosen.values() if not tensor.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        with torch.enable_grad():
            yield chosen
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


@contextmanager
def only_masks(target: Prunable) -> Iterator[None]:
    """While the context is open, the target's tensors require no gradient: graphs hold what masks need, and no more."""
    held = [tensor for tensor in target.tensors().values() if tensor.requires_grad and tensor.is_leaf]
    try:
        for tensor in held:
            tensor.requires_grad_(False)
        yield
    finally:
        for tensor in held:
            tensor.requires_grad_(True)


def mask_of_ones(target: Prunable) -> dict[str, Tensor]:
    """Group name -> (size,) ones that require a gradient, with the dtype and device of what the group's units own."""
    tensors = target.tensors()
    masks = {}
    for group in target.groups():
        owned = [tensors[member.param] for member in group.members if member.param in tensors]
        device = owned[0].device if owned else None
        dtype = next((tensor.dtype for tensor in owned if tensor.is_floating_point()), torch.float32)
        masks[group.name] = torch.ones(group.size, dtype=dtype, device=device, requires_grad=True)
    return masks
