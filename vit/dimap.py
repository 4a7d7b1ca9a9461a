"""DIMAP: magnitudes that are compared within the modules of a hierarchical vision transformer, without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from secateur.granularity import ParamsFilter
from secateur.importance import Lamp
from secateur.surgery.layers import join_name
from secateur.units import Scores
from vit.units.layouts import attentions, feed_forward_of

Level = Literal["block", "network"]
"""Modules of each block on their own, or of all blocks together."""

QKV, PROJECTION, MLP, AUXILIARY = "QKV", "projection", "MLP", "auxiliary"


@dataclass(frozen=True)
class Dimap:
    """A unit's share of the energy of all units of its module that are no smaller, w^2 / sum of w_i^2.

    He and Zhou: Data-independent Module-Aware Pruning for Hierarchical Vision Transformers (arXiv 2404.13648), whose
    comparison groups are modules and not layers: queries, keys and values; the projection behind them; the MLP; and
    what is left, the auxiliary module (patch embedding and merging, classifier). Scores are then ranked over the whole
    network at once. It is `Lamp` with modules as layers, for single weights, blocks, neurons and heads.

    What the paper leaves open, and is decided here:

    - The sum is over i <= p_j of a sorted order. Were it ascending, the smallest weight of a module would score 1, and
      scores would not follow magnitudes; the paper keeps local ranks, so the order is descending, as in LAMP: the
      largest scores 1.
    - Whether the QKV module is that of a block or of all blocks: see `level`.

    Args:
        level: "block": each block has modules of its own, and each auxiliary layer is one; "network": there are four
            in all, inside which weights then compete by plain magnitude, across the stages of a hierarchy too.
        params: names of the parameters that count; None counts all that the unit owns.
    """

    level: Level = "block"
    params: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"level must be one of {get_args(Level)}, got {self.level!r}")

    def score(self, target: Any, calibration: object = None) -> Scores:
        """(size,) float32 scores in [0, 1] of each group; the calibration is not used.

        Args:
            target: a `Weights` or `Network` over a vision transformer.
            calibration: nothing.

        Raises:
            ValueError: the target has no module, or as for `Lamp`.
        """
        module = getattr(target, "module", None)
        if not isinstance(module, nn.Module):
            raise ValueError(f"DIMAP needs units of a model, got a {type(target).__name__} without one")
        return Lamp(module_scope(module, self.level), self.params).score(target)


def module_scope(model: nn.Module, level: Level = "block") -> Callable[[str], str]:
    """Name of a group -> name of its module, for `Lamp`.

    Groups are named by a parameter, a layer, or what `vit.units.prunable` calls them: heads, which own queries, keys,
    values and columns of the projection, are a module of their own kind, as one unit cannot be in two.
    """
    layers: dict[str, tuple[str, str]] = {}
    for attention in attentions(model):
        layers[attention.name] = (attention.name, QKV)
        layers[f"{attention.name}.heads"] = layers[f"{attention.name}.head_dims"] = (attention.name, "heads")
        layers |= dict.fromkeys(attention.inputs, (attention.name, QKV))
        layers[attention.out] = (attention.name, PROJECTION)
    for name, module in model.named_modules():
        found = feed_forward_of(name, module)
        if found is not None:
            parts = (found.up, found.down, found.gate, join_name(name, "neurons"))
            layers |= {part: (name, MLP) for part in parts if part is not None}

    def scope(group: str) -> str:
        for name in (group, group.rpartition(".")[0]):
            if name in layers:
                owner, kind = layers[name]
                return kind if level == "network" else f"{owner}: {kind}"
        return AUXILIARY if level == "network" else f"{group}: {AUXILIARY}"

    return scope


def linear_weights(model: nn.Module) -> ParamsFilter:
    """Only weights of linear layers, and the one matrix of q, k and v of torch's attentions: no tables, no norms."""
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names |= {f"{name}.in_proj_weight" for name, module in model.named_modules() if hasattr(module, "in_proj_weight")}

    def chosen(name: str, tensor: Tensor) -> bool:
        return name in names and tensor.is_floating_point()

    return chosen
