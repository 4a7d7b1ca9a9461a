"""A module's weights: taken, put back, and looked at in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def snapshot(module: nn.Module) -> dict[str, Any]:
    """A copy of the module's state: what `restore` takes."""
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in module.state_dict().items()
    }


def restore(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Put a state back, even where parameters have changed their shape since."""
    fit_shapes(module, state)
    module.load_state_dict(state)


def fit_shapes(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give each parameter and buffer the shape that it has in `state`: densification and pruning change them.

    A tensor whose shape changes has no values that mean anything until the state is loaded.
    """
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        saved = state.get(name)
        if isinstance(saved, Tensor) and saved.shape != tensor.shape:
            tensor.data = tensor.new_empty(saved.shape)
            tensor.grad = None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule is in the mode in which it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
