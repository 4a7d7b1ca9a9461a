"""Features of the stream that all layers of a vision transformer read and add to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from secateur.surgery.found import Found, LeftOut
from secateur.surgery.layer_members import Unsupported, members_of
from secateur.surgery.layers import join_name, split_name
from secateur.units import Member, UnitGroup
from vit.units.layouts import TABLE, Layer, attention_of, layers

_Product: TypeAlias = nn.Linear | nn.Conv2d
_Norm: TypeAlias = nn.LayerNorm | nn.RMSNorm


@dataclass(frozen=True, slots=True)
class _Stage:
    """Layers over one stream.

    Args:
        owner: the module that holds their list.
        layers: in order.
        width: features of the stream.
    """

    owner: str
    layers: tuple[Layer, ...]
    width: int


def find_embedding(model: nn.Module, min_keep: int = 1) -> Iterator[Found | LeftOut]:
    """Features of the residual stream, a group for each stage between which patches are merged.

    A feature goes everywhere at once: outputs of the patch embedding, class, position and register tokens, layer norms,
    layer scales, inputs of queries, keys, values and of what widens, outputs of what narrows, inputs of the classifier.
    One that reads several tokens side by side (DINOv2's class token and mean; the four patches of Swin's merging) reads
    a feature in each of them. Layer norms count what is left: a mask does so too.
    """
    stages = _stages(model)
    for index, stage in enumerate(stages):
        name = join_name(stage.owner, "embedding")
        try:
            members = tuple(_members(model, stages, index))
        except Unsupported as reason:
            yield LeftOut(name, str(reason))
        else:
            yield Found(UnitGroup(name, stage.width, members, min_keep=max(1, min_keep)))


def _stages(model: nn.Module) -> list[_Stage]:
    by_list: dict[str, list[Layer]] = {}
    for layer in layers(model):
        if layer.listed:
            by_list.setdefault(split_name(layer.name)[0], []).append(layer)
    return [_Stage(split_name(name)[0], tuple(each), each[0].width) for name, each in by_list.items()]


def _members(model: nn.Module, stages: Sequence[_Stage], index: int) -> Iterator[Member]:
    stage = stages[index]
    for layer in stage.layers:
        if layer.width != stage.width:
            raise Unsupported(f"{layer.name} has a stream of {layer.width} features among those of {stage.width}")
        yield from _of_layer(model, layer)
    if index:
        yield from _of_writer(model, _merging(model, stages[index - 1]), stage.width)
    else:
        yield from _of_beginning(model, stages)
    if index < len(stages) - 1:
        merging = _merging(model, stage)
        yield from _of_readers(model, [merging], stage.width)
    else:
        yield from _of_readers(model, _sites(model, stages)[1], stage.width)


def _of_layer(model: nn.Module, layer: Layer) -> Iterator[Member]:
    """What a feature owns of a layer.

    Raises:
        Unsupported: the layer holds a parameter that no feature is known to own.
    """
    rows = _rows(layer.width, layer.width)
    attention, feed_forward = layer.attention, layer.feed_forward
    readers: list[str] = []
    writers: list[str] = []
    done: list[str] = []
    if attention is not None:
        readers += attention.inputs
        writers.append(attention.out)
        done.append(attention.name)
        if attention.projections == "multihead":
            yield Member(join_name(attention.name, "in_proj_weight"), 1)
    if feed_forward is not None:
        readers += [name for name in (feed_forward.up, feed_forward.gate) if name is not None]
        writers.append(feed_forward.down)
        done += [name for name in (feed_forward.up, feed_forward.gate, feed_forward.down) if name is not None]
    for name in readers:
        yield from members_of(model.get_submodule(name), name, False, rows, 0).members
    for name in writers:
        yield from members_of(model.get_submodule(name), name, True, rows, 0).members
    for tensor, parameter in model.get_submodule(layer.name).named_parameters():
        name = join_name(layer.name, tensor)
        if split_name(name)[1] == TABLE or any(name.startswith(f"{module}.") for module in done):
            continue
        if parameter.shape != (layer.width,):
            raise Unsupported(f"it is not known which of {name} belongs to a feature")
        yield Member(name, 0)


def _of_beginning(model: nn.Module, stages: Sequence[_Stage]) -> Iterator[Member]:
    """What a feature owns of that which begins the stream: patches, tokens, positions, norms.

    Raises:
        Unsupported: no layer is found that embeds patches.
    """
    size = stages[0].width
    before, _ = _sites(model, stages)
    writers = [_writer(model, site, size) for site in before]
    if not any(writers):
        raise Unsupported("no layer is found that embeds patches into its stream")
    for site, writer in zip(before, writers, strict=True):
        found = list(model.get_submodule(site).named_modules(prefix=site))
        last = [name for name, _ in found].index(writer) if writer else -1
        for name, module in found[last + 1 :]:
            if isinstance(module, _Norm | nn.Embedding) and _last_width(module) == size:
                yield from members_of(module, name, True, _rows(size, size), 0).members
        if writer:
            yield from members_of(model.get_submodule(writer), writer, True, _rows(size, size), 0).members
        for name, module in found:
            if not isinstance(module, _Norm | _Product | nn.Embedding):
                yield from _of_tokens(name, module, size)
    for ancestor in _ancestors(stages):
        yield from _of_tokens(ancestor, model.get_submodule(ancestor), size)


def _of_tokens(name: str, module: nn.Module, size: int) -> Iterator[Member]:
    """What a feature owns of the module's own parameters: tokens and positions, whose last dimension is the stream."""
    for tensor, parameter in module.named_parameters(recurse=False):
        if parameter.dim() and parameter.shape[-1] == size:
            yield Member(join_name(name, tensor), parameter.dim() - 1)


def _of_writer(model: nn.Module, site: str, size: int) -> Iterator[Member]:
    writer = _writer(model, site, size) if site else ""
    if not writer:
        raise Unsupported("no layer is found that merges patches into its stream")
    yield from members_of(model.get_submodule(writer), writer, True, _rows(size, size), 0).members


def _writer(model: nn.Module, site: str, size: int) -> str:
    """The last layer of a module that writes the stream; "" if there is none."""
    named = model.get_submodule(site).named_modules(prefix=site)
    return next((name for name, module in reversed(list(named)) if _outputs(module) == size), "")


def _of_readers(model: nn.Module, sites: Sequence[str], size: int) -> Iterator[Member]:
    """What a feature owns of that which reads the stream at its end: norms, classifiers, a neck, merging of patches.

    Of each module, the first layer reads; a norm belongs to what it reads if it comes before, or fits nothing else.

    Raises:
        Unsupported: nothing reads it, so that it is the model's own output.
    """
    any_reader = False
    for site in filter(None, sites):
        found = list(model.get_submodule(site).named_modules(prefix=site))
        if any(attention_of(name, module) is not None for name, module in found):
            raise Unsupported(f"{site} attends to its stream at its end")
        first = next((index for index, (_, module) in enumerate(found) if _reads(module, size)), len(found))
        reader = found[first][1] if first < len(found) else None
        given = size if reader is None else _inputs(reader)
        for index, (name, module) in enumerate(found):
            if not isinstance(module, _Norm) or _last_width(module) != given:
                continue
            if index < first or (reader is not None and given != _outputs(reader)):
                yield from members_of(module, name, None, _rows(size, given), 0).members
        if reader is not None:
            any_reader = True
            yield from members_of(reader, found[first][0], False, _rows(size, given), 0).members
    if not any_reader:
        raise Unsupported("nothing reads its stream at its end, so it is the model's own output")


def _reads(module: nn.Module, size: int) -> bool:
    given = _inputs(module)
    return bool(given) and (given % size == 0 if isinstance(module, nn.Linear) else given == size)


def _inputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels if isinstance(module, nn.Conv2d) and module.groups == 1 else 0


def _outputs(module: nn.Module) -> int:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) and module.groups == 1 else 0


def _last_width(module: _Norm | nn.Embedding) -> int:
    """Features that a norm or a table of embeddings has weights for; 0 where it has none."""
    weight: Tensor | None = module.weight
    return 0 if weight is None else weight.shape[-1]


def _rows(size: int, width: int) -> Tensor:
    """(size, width / size) rows of each feature, where several tokens lie side by side."""
    return torch.arange(width).reshape(-1, size).T.contiguous()


def _ancestors(stages: Sequence[_Stage]) -> list[str]:
    """The modules that hold all stages, from the innermost on."""
    common = stages[0].owner.split(".") if stages[0].owner else []
    for stage in stages[1:]:
        shared = 0
        for mine, other in zip(common, stage.owner.split("."), strict=False):
            if mine != other:
                break
            shared += 1
        common = common[:shared]
    return [".".join(common[:end]) for end in range(len(common), -1, -1)]


def _sites(model: nn.Module, stages: Sequence[_Stage]) -> tuple[list[str], list[str]]:
    """Modules beside the stages that come before them and after them, in the order of the model's definition.

    A linear layer that reads the stream and writes something else comes after, wherever it is defined.
    """
    held = [layer.name for stage in stages for layer in stage.layers]
    before: list[str] = []
    after: list[str] = []
    for ancestor in _ancestors(stages):
        passed = False
        for child, module in model.get_submodule(ancestor).named_children():
            name = join_name(ancestor, child)
            if any(layer == name or layer.startswith(f"{name}.") for layer in held):
                passed = True
                continue
            reads = isinstance(module, nn.Linear) and _reads(module, stages[-1].width)
            heads = reads and _outputs(module) != stages[0].width
            (after if passed or heads else before).append(name)
    return before, after


def _merging(model: nn.Module, stage: _Stage) -> str:
    """The module of a stage that merges its patches for the next; "" if there is none."""
    owner = model.get_submodule(stage.owner)
    held = [layer.name for layer in stage.layers]
    names = [(join_name(stage.owner, child), module) for child, module in owner.named_children()]
    others = [(name, module) for name, module in names if not any(layer.startswith(f"{name}.") for layer in held)]
    return next((name for name, module in others if any(_reads(part, stage.width) for part in module.modules())), "")
