"""Does a unit map tell the truth? Run the masked and the cut network, and compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.surgery.cost import evaluating, run_example
from secateur.surgery.network import Network
from secateur.units import Keep

_TOLERANCE = 1e-4


def find_miscut(network: Network, *, seed: int = 0) -> dict[str, str]:
    """Groups where the cut network does not do what the masked one does, with what happens instead.

    About half of each group's units go, drawn from `seed`; first of all groups at once, then, if that fails, of one
    group after the other. On the meta device, only shapes are compared.

    Raises:
        ValueError: the network has no example inputs.
    """
    if network.example_inputs is None:
        raise ValueError("checking a unit map needs example inputs")
    halves = _halves(network, seed)
    everything: Keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in network.groups()}
    if not halves or mismatch(network, everything | halves) is None:
        return {}
    alone = {name: mismatch(network, everything | {name: keep}) for name, keep in halves.items()}
    return {name: reason for name, reason in alone.items() if reason is not None}


def mismatch(network: Network, keep: Keep) -> str | None:
    """How the outputs of the cut network differ from those of the masked one, or None where they agree.

    Both run on the example inputs in evaluation mode. They agree if no difference exceeds 1e-4 of the largest output.
    """
    with evaluating(network.module), torch.no_grad():
        with network.masked({name: mask.float() for name, mask in keep.items()}):
            masked = _outputs(network)
        try:
            smaller = network.cut(keep)
            with evaluating(smaller.module):
                cut = _outputs(smaller)
        except Exception as error:
            return f"the cut network fails: {type(error).__name__}: {error}"
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (masked, cut)]
    if shapes[0] != shapes[1]:
        return f"the cut changes the shapes of the outputs from {shapes[0]} to {shapes[1]}"
    for left, right in zip(masked, cut, strict=True):
        if left.device.type == "meta" or not left.numel():
            continue
        difference = float((left.double() - right.double()).abs().max())
        largest = float(left.double().abs().max())
        if not difference <= _TOLERANCE * max(largest, 1e-30):
            return (
                f"the cut network's output differs from the masked one's by {difference:.3g}, of at most {largest:.3g}"
            )
    return None


def _outputs(network: Network) -> list[Tensor]:
    outputs: Any = run_example(network.module, network.example_inputs)
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _halves(network: Network, seed: int) -> Keep:
    generator = torch.Generator().manual_seed(seed)
    halves = {}
    for group in network.groups():
        if group.size < 2:
            continue
        keep = torch.zeros(group.size, dtype=torch.bool)
        keep[torch.randperm(group.size, generator=generator)[: max(1, group.min_keep, group.size // 2)]] = True
        halves[group.name] = keep
    return halves
