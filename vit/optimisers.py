"""AdamW as vision transformers are fine-tuned with: lower rates for lower layers, no decay of biases and norms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from secateur.training.rates import Rates, by_steps


def depths(module: nn.Module) -> dict[str, int]:
    """Parameter name -> how deep it lies: 0 before the first layer, 1 in it, and the most behind the last.

    Layers are the members of lists of equal modules (of a stage's list, where stages have lists of their own), in the
    order in which the module holds them. Without layers all are 0.
    """
    lists = {name for name, part in module.named_modules() if _lists_equals(part)}
    layers: dict[str, int] = {}
    found: dict[str, int | None] = {}
    for name, _ in module.named_parameters():
        parts = name.split(".")
        within = [end for end in range(1, len(parts)) if ".".join(parts[:end]) in lists]
        if within:
            found[name] = layers.setdefault(".".join(parts[: within[-1] + 1]), len(layers) + 1)
        else:
            found[name] = None if layers else 0
    last = len(layers) + (None in found.values())
    return {name: last if depth is None else depth for name, depth in found.items()}


def _lists_equals(part: nn.Module) -> bool:
    held = list(part.children())
    return isinstance(part, nn.ModuleList | nn.Sequential) and bool(held) and len({type(one) for one in held}) == 1


def adamw(
    module: nn.Module,
    rate: float,
    weight_decay: float = 0.05,
    layer_decay: float = 1.0,
    schedule: Rates | None = None,
    beside: Iterable[nn.Parameter] = (),
) -> Mapping[str, Any]:
    """AdamW over what requires gradients: what `configure_optimizers` of a Lightning module returns.

    Rates fall by `layer_decay` from each layer to the one below it (BEiT, Bao et al. 2021, arXiv 2106.08254, section
    3.2; ELECTRA before it). Biases, norms, class tokens and position embeddings do not decay.

    Args:
        module: what trains.
        rate: of the head.
        weight_decay: of matrices and convolutions.
        layer_decay: in (0, 1]; 1: all have the same rate.
        schedule: step -> factor of the rates; None: they stay.
        beside: further parameters, which train at `rate` without decay.

    Raises:
        ValueError: an option is out of range, or nothing requires gradients.
    """
    if rate <= 0 or weight_decay < 0 or not 0 < layer_decay <= 1:
        raise ValueError(
            f"rate > 0, weight_decay >= 0 and layer_decay in (0, 1] are needed, got {rate}, {weight_decay} "
            f"and {layer_decay}"
        )
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("nothing requires gradients, so there is nothing to train")
    deep = depths(module)
    last = max(deep.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        depth = deep[name] if layer_decay < 1 else last
        groups.setdefault((depth, _decays(name, parameter)), []).append(parameter)
    groups.setdefault((last, False), []).extend(beside)
    options = [
        {
            "params": parameters,
            "lr": rate * layer_decay ** (last - depth),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (depth, decays), parameters in groups.items()
    ]
    optimizer = torch.optim.AdamW(options, lr=rate, fused=True)
    return by_steps(optimizer, schedule)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and not name.rpartition(".")[2].endswith(
        ("_token", "_tokens", "_embeddings", "_bias_table")
    )
