"""What linear layers see, and how much the loss minds changes of what they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.importance.objective import Objective
from secateur.solvers.gram import Gram, input_grams
from secateur.surgery.cost import evaluating, run_example


@torch.no_grad()
def gather_inputs(model: nn.Module, layers: Mapping[str, nn.Linear], batches: Sequence[Any]) -> dict[str, Gram]:
    """Name -> Gram matrix of the layer's inputs over all batches (a tensor, a tuple of arguments, or a dict of them).

    Raises:
        ValueError: there is no batch, or a layer was never run.
    """
    if not len(batches):
        raise ValueError("calibration needs a batch at least")
    with evaluating(model), input_grams(model, layers) as grams:
        for batch in batches:
            run_example(model, batch)
    idle = [name for name, gram in grams.items() if not gram.samples]
    if idle:
        raise ValueError(f"the calibration never ran {idle}; name the layers that it runs")
    return grams


def output_sensitivities(
    model: nn.Module, layers: Mapping[str, nn.Linear], objective: Objective
) -> dict[str, Float[Tensor, " outputs"]]:
    """Name -> the squared gradient of the loss in each output, summed over tokens, averaged over batches.

    With the inputs' second moment it makes up the Kronecker-factored Fisher information of the layer (Martens and
    Grosse, arXiv 1503.05671), of whose second factor it is the diagonal: distortions of different layers then count in
    one currency, the loss.

    Raises:
        ValueError: the objective has no loss, or one that does not depend on a layer.
    """
    sums = {name: torch.zeros(layer.out_features, dtype=torch.float64) for name, layer in layers.items()}
    weights = [layer.weight for layer in layers.values()]
    frozen = [weight for weight in weights if not weight.requires_grad]
    batches = 0
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            handle = layer.register_forward_hook(partial(_watch, sums[name]))
            stack.callback(handle.remove)
        for weight in frozen:
            stack.callback(weight.requires_grad_, False)
            weight.requires_grad_(True)
        with torch.enable_grad():
            for loss in objective.losses(model):
                torch.autograd.grad(loss, weights, allow_unused=True)
                batches += 1
    silent = [name for name, total in sums.items() if not bool(total.any())]
    if silent or not batches:
        raise ValueError(f"the loss of the objective has no gradient in the outputs of {silent or 'any layer'}")
    return {name: total / batches for name, total in sums.items()}


def _watch(total: Tensor, layer: nn.Module, inputs: Any, output: Tensor) -> None:
    def add(gradient: Tensor) -> None:
        total.add_(gradient.detach().reshape(-1, len(total)).double().square().sum(0).cpu())

    if output.requires_grad:
        output.register_hook(add)
