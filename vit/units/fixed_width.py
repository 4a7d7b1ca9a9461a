"""Attentions whose forward fixes the width of their heads' values, so that they cannot run with fewer heads."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from secateur.surgery.cut import Count
from secateur.surgery.layers import named_tensors
from secateur.surgery.network import Network
from secateur.units import UnitGroup


def fixes_width(attention: nn.Module, name: str, group: UnitGroup, counts: tuple[Count, ...], features: int) -> bool:
    """Whether the attention runs on tokens, but does not without one of its heads (as in older versions of timm).

    It is tried on the meta device, where nothing is copied or computed.

    Args:
        attention: it takes tokens (batch, tokens, features) where it can be tried at all.
        name: its qualified name, as the group's members and the counts have it.
        group: its heads.
        counts: what counts them.
        features: of a token.
    """
    shapes = {id(tensor): _on_meta(tensor) for tensor in named_tensors(attention).values()}
    trial = copy.deepcopy(attention, shapes).eval()
    own = tuple(
        replace(member, param=member.param[len(name) + 1 :])
        for member in group.members
        if member.param.startswith(f"{name}.")
    )
    if group.size < 2 or not _runs(trial, features):
        return False
    network = Network(trial, [replace(group, members=own)], counts=[replace(count, module="") for count in counts])
    return not _runs(network.cut({group.name: torch.arange(group.size) > 0}).module, features)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _runs(attention: nn.Module, features: int) -> bool:
    parameter = next(attention.parameters())
    try:
        with torch.no_grad():
            attention(torch.empty(1, 4, features, device="meta", dtype=parameter.dtype))
    except Exception:  # a forward of any class, called as it may not be meant
        return False
    return True
