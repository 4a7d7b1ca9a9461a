"""Block removal in the manner of BK-SDM: whole layers and stages of a UNet go, and a plain diffusers model is left.

    student = remove_blocks(unet, BK_SDM_SMALL)
    student.model.save_pretrained(folder)
    module = DiffusionDistillation(student.model, student.teacher(unet), [OutputError(), student.features()], ...)

Kim et al. 2023, BK-SDM: A Lightweight, Fast, and Cheap Version of Stable Diffusion (arXiv 2305.15798). Where no paper
says which blocks go, scores do: `remove_by_score`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffusion.train import block_features
from secateur.allocation import Budget, checked_scores
from secateur.recovery.distill import Features
from secateur.surgery.layers import split_name
from secateur.surgery.network import Network
from secateur.surgery.plan import measure
from secateur.units import Keep, Scores

_DOWN = ("block_out_channels", "down_block_types")
_BY_STAGE = (
    "layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "only_cross_attention",
)
_UP = ("up_block_types", "reverse_transformer_layers_per_block")


@dataclass(frozen=True)
class BlockRemoval:
    """What goes from a UNet.

    Args:
        layers: one layer (a resnet and its attention) of each stage on the way down, and one on the way up: the last
            but one there, for the last is what the next stage is used to (arXiv 2305.15798, section 3.2).
        middle: the block between the two ways.
        stages: innermost stages, which must be as wide as the next one; the middle goes with them.

    Raises:
        ValueError: nothing goes, or `stages` is negative.
    """

    layers: bool = True
    middle: bool = False
    stages: int = 0

    def __post_init__(self) -> None:
        if self.stages < 0 or not (self.layers or self.middle or self.stages):
            raise ValueError(f"something must go: layers, the middle, or stages of at least 0, got {self}")


BK_SDM_BASE = BlockRemoval()
"""0.58 of the 0.86 billion parameters of Stable Diffusion 1's UNet stay."""
BK_SDM_SMALL = BlockRemoval(middle=True)
"""0.48 billion stay."""
BK_SDM_TINY = BlockRemoval(middle=True, stages=1)
"""0.32 billion stay."""


@dataclass(frozen=True, eq=False)
class Student:
    """A smaller UNet, with weights of the one that it was made from.

    Args:
        model: of the same class of diffusers, in evaluation mode, with tensors of its own.
        origins: module of the student -> the module that it was, for those that have another name now.
        shortened: blocks whose last part went, so that they end elsewhere than the teacher's.
    """

    model: nn.Module
    origins: Mapping[str, str]
    shortened: frozenset[str] = field(default_factory=frozenset)

    def features(self, weight: float = 1.0) -> Features:
        """What BK-SDM compares (arXiv 2305.15798, eq. 4): the outputs of all blocks that both have."""
        every = block_features(self.model, weight)
        ends = {f"network.{name}" for name in self.shortened}
        return Features(tuple(name for name in every.names if name not in ends), weight, every.dim)

    def teacher(self, teacher: nn.Module) -> nn.Module:
        """The teacher, whose blocks go by the student's names: the teacher of a `DiffusionDistillation`."""
        return _Renamed(teacher, {name: self.origins.get(name, name) for name, _ in _blocks(self.model)})


def remove_blocks(teacher: nn.Module, removal: BlockRemoval = BK_SDM_BASE) -> Student:
    """The UNet of the smaller configuration, with the teacher's weights by name.

    The last layer of each stage on the way up takes those of the teacher's last one. Works on the meta device.

    Args:
        teacher: a UNet of diffusers; it is not changed.
        removal: what goes.

    Raises:
        ValueError: it is no UNet, it has no layers, middle or stages to spare, or its weights do not fit the smaller
            configuration.
    """
    config: Mapping[str, Any] | None = getattr(teacher, "config", None)
    if config is None or not hasattr(teacher, "down_blocks") or "block_out_channels" not in config:
        raise ValueError(f"{type(teacher).__name__} is no UNet of diffusers; of other models, blocks go by score")
    # Fields that diffusers notes itself stay out: those that it lists as defaults would not be read.
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    smaller = _config(teacher, own, removal)
    meta = next(teacher.parameters()).is_meta
    with torch.device("meta"):
        model = type(teacher).from_config(smaller)  # type: ignore[attr-defined]
    origins = _origins(teacher, model, removal.stages)
    given, state = teacher.state_dict(), {}
    for name, tensor in model.state_dict().items():
        value = given.get(_origin(name, origins))
        if value is None or value.shape != tensor.shape:
            found = "none" if value is None else f"one of {tuple(value.shape)}"
            raise ValueError(
                f"the student needs {name!r} of {tuple(tensor.shape)}, and the teacher has {found} in "
                f"{_origin(name, origins)!r}"
            )
        state[name] = value if meta else value.clone()
    model.load_state_dict(state, strict=True, assign=True)
    last = f"down_blocks.{len(model.down_blocks) - 1}"
    return Student(model.eval(), origins, frozenset({last} if removal.stages else ()))


def remove_by_score(network: Network, scores: Scores, budget: Budget) -> Network:
    """Whole modules go, the least worth first, until what is left of the model is within the budget.

    Unlike in `allocate`, costs of modules need not add up: one that lies in another goes with it, and the whole model
    is measured, with all that is no unit.

    Args:
        network: of groups of whole modules: `prunable(model, ("resnets", "attentions", "feed_forwards"), inputs)`.
        scores: group name -> (1,), the higher the better, of `diffusion.scores.LatentShift` for one.
        budget: of the whole model: "params", "bytes" or "macs".

    Raises:
        ValueError: scores are missing or NaN, the cost is unknown, or the budget is not met with all modules gone.
    """
    if budget.cost not in ("params", "bytes", "macs"):
        raise ValueError(f"whole models are measured in params, bytes or macs, not in {budget.cost!r}")
    groups = network.groups()
    worth = torch.cat([checked_scores(scores, group).detach().cpu().double() for group in groups])
    order = worth.argsort(stable=True)
    whole = _size(network, budget.cost)
    limit = budget.limit if budget.limit is not None else (budget.share or 0.0) * whole

    def without(count: int) -> Network:
        kept = torch.ones(len(worth), dtype=torch.bool)
        kept[order[:count]] = False
        keep: Keep = {g.name: part for g, part in zip(groups, kept.split([g.size for g in groups]), strict=True)}
        return network.cut(keep)

    low, high = -1, len(worth)
    if _size(without(high), budget.cost) > limit:
        raise ValueError(f"without all of {high} modules the model still has more than {limit:g} {budget.cost}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _size(without(middle), budget.cost) <= limit else (middle, high)
    return without(high)


def _size(network: Network, cost: str) -> float:
    size = getattr(measure(network), cost)
    if size is None:
        raise ValueError("multiply-adds need a network with example inputs")
    return float(size)


def _config(teacher: nn.Module, config: dict[str, Any], removal: BlockRemoval) -> dict[str, Any]:
    """The configuration of what is left."""
    stages = len(config["block_out_channels"])
    if removal.stages >= stages:
        raise ValueError(f"{removal.stages} of {stages} stages cannot go: one must stay")
    if removal.layers:
        layers = config["layers_per_block"]
        fewer = layers - 1 if isinstance(layers, int) else [layer - 1 for layer in layers]
        if min([fewer] if isinstance(fewer, int) else fewer) < 1:
            raise ValueError(f"layers_per_block is {layers}: no layer can go from a stage that has one")
        config["layers_per_block"] = fewer
    if removal.middle or removal.stages:
        if teacher.mid_block is None:
            raise ValueError("there is no block in the middle that could go")
        config["mid_block_type"] = None
    for name in (*_DOWN, *_BY_STAGE):
        if isinstance(config.get(name), list | tuple) and removal.stages:
            config[name] = list(config[name])[: -removal.stages]
    for name in _UP:
        if isinstance(config.get(name), list | tuple):
            config[name] = list(config[name])[removal.stages :]
    return config


def _origins(teacher: Any, model: Any, stages: int) -> dict[str, str]:
    """Module of the student -> of the teacher, where the names differ: stages and last layers on the way up."""
    origins = {}
    for index, block in enumerate(model.up_blocks):
        was = index + stages
        if was != index:
            origins[f"up_blocks.{index}"] = f"up_blocks.{was}"
        for kind in ("resnets", "attentions"):
            mine, theirs = getattr(block, kind, None), getattr(teacher.up_blocks[was], kind, None)
            if mine is not None and theirs is not None and len(mine) != len(theirs):
                last = f"up_blocks.{index}.{kind}.{len(mine) - 1}"
                origins[last] = f"up_blocks.{was}.{kind}.{len(theirs) - 1}"
    return origins


def _origin(name: str, origins: Mapping[str, str]) -> str:
    """The teacher's name of a tensor of the student."""
    owners = [old for old in origins if name.startswith(f"{old}.")]
    longest = max(owners, key=len, default="")
    return origins[longest] + name[len(longest) :] if longest else name


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    names = [name.removeprefix("network.") for name in block_features(model).names]
    return [(name, model.get_submodule(name)) for name in names]


class _Renamed(nn.Module):
    """Runs a network, some of whose modules go by other names."""

    def __init__(self, network: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        for name, old in names.items():
            parent, child = split_name(name)
            holder: nn.Module = self
            for step in filter(None, parent.split(".")):
                if step not in holder._modules:
                    holder.add_module(step, nn.Module())
                holder = holder._modules[step]  # type: ignore[assignment]
            holder.add_module(child, network.get_submodule(old))
        # Behind the others: where modules are listed, each goes by the first of its names.
        self.whole = network
        # The instance's own, so that the signature is that of the network: a denoiser is told by its arguments.
        self.forward = network.forward
