"""What a network costs under soft masks: differentiable, and the counted number where the masks are 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.granularity import spread
from secateur.surgery.layers import named_tensors
from secateur.surgery.network import Network
from secateur.surgery.stand_in import Block, gone_with, kept_elements
from secateur.units import mask_of


def soft_macs(network: Network, masks: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Multiply-adds of a forward of the example inputs when units count by their masks.

    A layer's multiply-adds are those of its inputs times its outputs, so both sums of masks are multiplied, as in
    AutoBot's count (Castells and Yeom, arXiv 2111.09635). Costs of units, which `TrainableMask.penalty` adds up, take
    all other units as they are; this does not. What goes whole with a block counts by the block's mask, products
    between activations by the share of heads.

    Args:
        network: with example inputs.
        masks: group name -> (size,), differentiable.

    Raises:
        ValueError: there are no example inputs, or a mask is missing or misshapen.
    """
    usage = network.usage
    if usage is None:
        raise ValueError("multiply-adds need example inputs: give them to the Network")
    tensors = named_tensors(network.module)
    along: dict[tuple[str, int], Tensor] = {}
    share: dict[str, Tensor] = {}
    strengths: list[tuple[Block, Tensor]] = []
    for group in network.groups():
        mask = mask_of(masks, group.name, group.size)
        if group.name in network.blocks:
            strengths += zip(network.blocks[group.name], mask.double().cpu(), strict=True)
            continue
        for member in group.members:
            key = (member.param, member.dim)
            kept = spread(mask.double(), member, tensors[member.param]).flatten()
            along[key] = along[key] * kept if key in along else kept
        share |= {count.module: mask.double().mean() for count in network.counts if count.group == group.name}
    total = torch.zeros((), dtype=torch.float64)
    for name, each in usage.products.items():
        shape = tensors[name].shape
        part = torch.tensor(each * shape.numel(), dtype=torch.float64)
        for dim in range(len(shape)):
            if (name, dim) in along:
                part = part * along[name, dim].mean().cpu()
        for block, strength in strengths:
            if name.startswith(f"{block.module}."):
                left = kept_elements(name, shape, block) / shape.numel()
                part = part * (left + (1 - left) * strength)
        total = total + part
    for name, amount in usage.mixing.items():
        held = [strength for block, strength in strengths if gone_with(f"{name}.", {"": block})]
        heads = share[name].cpu() if name in share else torch.ones(())
        total = total + amount * torch.stack([heads.double(), *held]).prod()
    return total
