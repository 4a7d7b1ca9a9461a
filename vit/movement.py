"""Block movement pruning of vision transformers: which shapes of units suit which layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Bool
from torch import Tensor, nn

from secateur.granularity import Block, Columns, Granularity, ParamsFilter, Rows
from secateur.units import Keep
from vit.units.layouts import attentions, feed_forward_of

AttentionUnits = Literal["blocks", "heads"]
"""Blocks of a given size, or what a head owns of each matrix."""


def hybrid_units(
    model: nn.Module, attention: AttentionUnits = "blocks", block: tuple[int, int] = (32, 32)
) -> list[tuple[Granularity, ParamsFilter]]:
    """What a unit is in which parameters: square blocks in attentions, rows and columns in feed-forwards.

    The hybrid of block movement pruning (Lagunas et al. 2021, arXiv 2109.04838, section 3.2): a neuron goes as a row of
    the layer that widens or a column of the one that narrows, and a head once all that it owns is gone. A training
    takes a callback for each pair:

        callbacks = [
            MovementPruning(Polynomial(3), budget, last_step, granularity=units, params=params)   # or Soft...
            for units, params in hybrid_units(model)
        ]

    and afterwards `secateur.surgery.dead.cut_dead(vit.units.prunable(model))` cuts the heads and neurons that nothing
    reads any more. A budget holds for its pair alone, so that each kind of unit keeps its share exactly.

    Args:
        model: a vision transformer; the one that is trained, or that the trained module holds.
        attention: "blocks" of `block`; "heads": of each matrix, the rows (of the output's, the columns) of one head.
        block: rows and columns.

    Raises:
        ValueError: the model has no attention, or one whose matrices the blocks do not divide.
    """
    units: dict[Granularity, list[Tensor]] = {}
    for found in attentions(model):
        inputs: list[Tensor] = [model.get_parameter(f"{layer}.weight") for layer in found.inputs]
        if found.projections == "multihead":
            inputs = [model.get_parameter(f"{found.name}.in_proj_weight")]
        out: Tensor = model.get_parameter(f"{found.out}.weight")
        for weight in (*inputs, out):
            shape: Granularity = Block(*block)
            if attention == "heads":
                rows, columns = weight.shape
                shape = Block(rows, found.head_dim) if weight is out else Block(found.head_dim, columns)
            units.setdefault(shape, []).append(weight)
    if not units:
        raise ValueError(f"{type(model).__name__} has no attention that is known")
    for name, module in model.named_modules():
        feed_forward = feed_forward_of(name, module)
        if feed_forward is None:
            continue
        widening = [part for part in (feed_forward.up, feed_forward.gate) if part is not None]
        units.setdefault(Rows(), []).extend(model.get_parameter(f"{part}.weight") for part in widening)
        units.setdefault(Columns(), []).append(model.get_parameter(f"{feed_forward.down}.weight"))
    for shape, weights in units.items():
        for weight in weights:
            shape.member(f"a weight of {tuple(weight.shape)}", weight)
    return [(shape, _among(weights)) for shape, weights in units.items()]


def block_masks(
    model: nn.Module, keep: Keep | Iterable[Keep], block: tuple[int, int]
) -> dict[str, Bool[Tensor, "high wide"]]:
    """Layer -> which of its blocks stay, from the masks that callbacks over `Block(*block)` ended with.

    For `secateur.block_sparse.with_blocks`, and `secateur.block_compaction.compact`.

    Args:
        model: the module that was trained.
        keep: `callback.keep`, or several of them.
        block: rows and columns.

    Raises:
        ValueError: a mask is for no linear layer in blocks of that size.
    """
    found = {}
    for masks in [keep] if isinstance(keep, Mapping) else keep:
        for name, mask in masks.items():
            layer = model.get_submodule(name.removesuffix(".weight"))
            if not isinstance(layer, nn.Linear) or mask.numel() * block[0] * block[1] != layer.weight.numel():
                raise ValueError(f"the mask of {name!r} is not for blocks of {block[0]} x {block[1]} of a linear layer")
            high = layer.out_features // block[0]
            found[name.removesuffix(".weight")] = mask.view(high, -1).cpu()
    return found


def _among(weights: list[Tensor]) -> ParamsFilter:
    # By identity: in the module that is trained, parameters of the model have other names.
    def chosen(name: str, tensor: Tensor) -> bool:
        return any(tensor is weight for weight in weights)

    return chosen
