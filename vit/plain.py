"""Cuts that a configuration of transformers can express: the model that plain transformers builds of what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from secateur.surgery.found import width
from secateur.surgery.layers import split_name
from secateur.surgery.network import Network
from secateur.surgery.plain import Plain, filled, kept_entries, renamed_entries, renamed_to
from vit.units.layouts import Layer, layers

Value = TypeVar("Value")
_SIMPLE = (bool, int, float, str, tuple)
_OF_STAGES = ("stage_names", "out_features", "out_indices")
"""What backbones name by their number of layers; other models ignore it, but transformers checks it."""


def as_plain(network: Network) -> Plain | None:
    """The network as a model that transformers' configuration describes, or None where no configuration does.

    Expressible is what is the same in every layer: `num_hidden_layers` (`depths` of Swin), `hidden_size` (`embed_dim`),
    `intermediate_size` (`mlp_dim`, or a whole `mlp_ratio`), and `num_attention_heads` with `head_dim`, which ViT, DeiT
    and DINOv2 read. Dimensions of heads are not, because the logits would be scaled by the width that is left.
    """
    module: Any = network.module
    cuts = network.cuts
    if cuts.scattered or cuts.gathers or cuts.scatters or not (cuts.rows or cuts.blocks):
        return None
    kept = kept_entries(module, cuts)
    if kept is None or not all(kept.values()) or (kept and hasattr(module, "out_feature_channels")):
        return None
    renamed = renamed_entries(kept)
    for config in _configurations(module, kept):
        with torch.device("meta"):
            model = type(module)(config)
        plain = filled(model, module, renamed)
        if plain is not None and _same_attributes(module, plain):
            return plain
    return None


def _configurations(module: Any, kept: Mapping[str, Sequence[int]]) -> Iterator[Any]:
    """Configurations that may describe the module, the plainest first."""
    fields = _fields(module, kept)
    if fields is None:
        return
    stream, neurons = fields.pop("stream"), fields.pop("neurons")
    ratios: list[Any] = [None]
    if hasattr(module.config, "mlp_ratio") and neurons % stream == 0:
        kind = type(module.config.mlp_ratio)
        ratios.append(kind(neurons // stream))
    for ratio in ratios:
        changed = fields if ratio is None else {**fields, "mlp_ratio": ratio}
        before = {name: value for name, value in module.config.to_dict().items() if name not in _OF_STAGES or not kept}
        yield type(module.config).from_dict(before | changed)


def _fields(module: Any, kept: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """Values of the configuration's fields for what is left; None where it differs from layer to layer of a stage."""
    stages: dict[str, list[Layer]] = {}
    for layer in layers(module):
        stages.setdefault(split_name(layer.name)[0], []).append(layer)
    shapes = [_shape(module, stage) for stage in stages.values()]
    if not shapes or any(shape is None for shape in shapes):
        return None
    stream, heads, head_dim, neurons = next(shape for shape in shapes if shape is not None)
    depths = [len(stage) for stage in stages.values()]
    config = module.config
    if hasattr(config, "depths"):
        every_heads = [shape[1] for shape in shapes if shape is not None]
        same = type(config.depths)
        return {
            "stream": stream,
            "neurons": neurons,
            "embed_dim": stream,
            "depths": same(depths),
            "num_heads": type(config.num_heads)(every_heads),
        }
    fields = {"stream": stream, "neurons": neurons, "hidden_size": stream, "num_hidden_layers": depths[0]}
    fields |= {name: neurons for name in ("intermediate_size", "mlp_dim") if hasattr(config, name)}
    fields["num_attention_heads"] = heads
    if heads * head_dim != stream:
        fields["head_dim"] = head_dim
    if hasattr(config, "global_attn_indexes"):
        entries = next(iter(kept.values()), range(depths[0]))
        whole = [new for new, old in enumerate(entries) if old in config.global_attn_indexes]
        fields["global_attn_indexes"] = type(config.global_attn_indexes)(whole)
    return fields


def _shape(module: nn.Module, stage: Sequence[Layer]) -> tuple[int, int, int, int] | None:
    """(features of the stream, heads, their width, neurons) of every layer of a stage; None where these differ."""
    shapes = set()
    for layer in stage:
        if layer.attention is None or layer.feed_forward is None:
            return None
        neurons = width(module, layer.feed_forward.down, 1)
        shapes.add((layer.width, layer.attention.heads, layer.attention.head_dim, neurons))
    return shapes.pop() if len(shapes) == 1 else None


def _same_attributes(module: nn.Module, plain: Plain) -> bool:
    """Whether the plain model's modules hold the numbers that the pruned ones do: scales, heads, windows, shifts."""
    pruned = {renamed_to(name, plain.renamed): _simple(child) for name, child in module.named_modules()}
    return all(_agree(values, pruned.get(name, {})) for name, values in _named(plain.model))


def _named(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, _simple(child)) for name, child in model.named_modules())


def _simple(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in _SIMPLE and not name.startswith("_") and name != "training"
    }


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(second[name] == value for name, value in first.items() if name in second)
