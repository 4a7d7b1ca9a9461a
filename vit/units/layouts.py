"""What layers of vision transformers are made of: attentions, feed-forwards, and the layers that hold both."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_origin

from torch import nn

from secateur.surgery.found import integer, linear, named, width
from secateur.surgery.layers import join_name, split_name
from secateur.surgery.slim_attention import SlimAttention
from secateur.surgery.stand_in import Gone

_SEPARATE = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "out_proj", "proj")
_HEADS = ("num_attention_heads", "num_heads", "heads")
_FEED_FORWARDS = (
    ("fc1", "fc2", None),
    ("lin1", "lin2", None),
    ("linear1", "linear2", None),
    ("up_proj", "down_proj", "gate_proj"),
    ("weights_in", "weights_out", None),
    ("w12", "w3", None),
)
LOOKED_FOR = (
    "an attention (q_proj, k_proj, v_proj and o_proj; or qkv and proj; or nn.MultiheadAttention) beside a feed-forward "
    "(fc1 and fc2; lin1 and lin2; linear1 and linear2; up_proj, gate_proj and down_proj; weights_in and weights_out) "
    "and a layer norm"
)
"""What makes a module a layer of a vision transformer, in words."""

TABLE = "relative_position_bias_table"
"""A table of biases with a column a head (Swin, BEiT)."""

Projections = Literal["separate", "fused", "multihead"]


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention.

    Args:
        name: its qualified name.
        projections: queries, keys and values are layers of their own, one layer, or one parameter.
        inputs: layers that read the stream, by qualified name; none for one parameter.
        out: the layer that reads the heads' values.
        heads: how many there are.
        head_dim: width of each.
        pair: it returns its output and the attention's weights, not its output alone.
    """

    name: str
    projections: Projections
    inputs: tuple[str, ...]
    out: str
    heads: int
    head_dim: int
    pair: bool


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward.

    Args:
        name: qualified name of the module that holds it.
        up: the layer that widens.
        down: the layer that narrows.
        gate: the layer whose output gates that of `up`; None: there is none, or `up` holds its rows too.
        packed: `up` holds the rows of the gate too.
        whole: the module holds nothing else.
    """

    name: str
    up: str
    down: str
    gate: str | None
    packed: bool
    whole: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: an attention and a feed-forward over one stream. What was cut out of it whole is absent.

    Args:
        name: its qualified name.
        width: features of the stream.
        attention: None once it is gone.
        feed_forward: None once it is gone.
        listed: it is an entry of a list, which is run in a row.
    """

    name: str
    width: int
    attention: Attention | None
    feed_forward: FeedForward | None
    listed: bool


def attention_of(name: str, module: nn.Module) -> Attention | None:
    """The module as an attention; None if it is none, or nothing says how wide its heads are."""
    if isinstance(module, nn.MultiheadAttention | SlimAttention):
        heads, head_dim = int(module.num_heads), int(module.head_dim)
        return Attention(name, "multihead", (), join_name(name, "out_proj"), heads, head_dim, True)
    out = next((layer for layer in _OUTPUTS if linear(module, layer) is not None), None)
    separate = all(linear(module, layer) is not None for layer in _SEPARATE)
    if out is None or not (separate or linear(module, "qkv") is not None):
        return None
    inputs = _SEPARATE if separate else ("qkv",)
    inner = width(module, inputs[0], 0) // (1 if separate else 3)
    head_dim = _head_dim(module, inner)
    if not head_dim:
        return None
    return Attention(
        name,
        "separate" if separate else "fused",
        tuple(join_name(name, layer) for layer in inputs),
        join_name(name, out),
        inner // head_dim,
        head_dim,
        _returns_pair(module),
    )


def heads_attributes(module: nn.Module, heads: int) -> dict[str, int]:
    """Attributes of an attention that may count its heads, with the value that they have where they do."""
    return dict.fromkeys(_HEADS, heads)


def _head_dim(module: nn.Module, inner: int) -> int:
    width_of_one = integer(module, "head_dim")
    if width_of_one and inner % width_of_one == 0:
        return width_of_one
    heads = next(filter(None, (integer(module, attribute) for attribute in _HEADS)), 0)
    return inner // heads if heads and inner % heads == 0 else 0


def _returns_pair(module: nn.Module) -> bool:
    """Whether its forward says so, or it is one of transformers', some of which say otherwise."""
    if any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__):
        return True
    forward = inspect.signature(module.forward)
    returned = forward.return_annotation
    is_tuple = returned.startswith("tuple") if isinstance(returned, str) else get_origin(returned) is tuple
    return is_tuple or "output_attentions" in forward.parameters


def feed_forward_of(name: str, module: nn.Module) -> FeedForward | None:
    """The module as a feed-forward, or the one that it holds beside an attention; None if there is none."""
    for up, down, gate in _FEED_FORWARDS:
        if linear(module, up) is None or linear(module, down) is None:
            continue
        gated = gate is not None and linear(module, gate) is not None
        others = (child for child_name, child in module.named_children() if child_name not in (up, down, gate))
        return FeedForward(
            name,
            join_name(name, up),
            join_name(name, down),
            join_name(name, gate) if gated and gate is not None else None,
            not gated and width(module, up, 0) == 2 * width(module, down, 1),
            not any(True for other in others for _ in other.parameters()),
        )
    return None


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Every attention of the model, in order."""
    return (found for name, module in named(model) if (found := attention_of(name, module)) is not None)


def feed_forwards(model: nn.Module) -> Iterator[FeedForward]:
    """Every feed-forward of the layers of the model, in order."""
    return (layer.feed_forward for layer in layers(model) if layer.feed_forward is not None)


def layers(model: nn.Module) -> list[Layer]:
    """Every layer of the model, in order; those that are gone whole are not among them."""
    return [found for name, module in named(model) if (found := _layer(model, name, module)) is not None]


def _layer(model: nn.Module, name: str, module: nn.Module) -> Layer | None:
    norm = next((child for child in module.children() if isinstance(child, nn.LayerNorm | nn.RMSNorm)), None)
    if norm is None or norm.weight is None or norm.weight.dim() != 1:
        return None
    children = [(join_name(name, child_name), child) for child_name, child in module.named_children()]
    attention = next(filter(None, (attention_of(*child) for child in children)), None)
    feed_forward = next(filter(None, (feed_forward_of(*child) for child in [*children, (name, module)])), None)
    gone = sum(isinstance(child, Gone) for _, child in children)
    if (attention is not None) + (feed_forward is not None) + gone < 2:
        return None
    listed = isinstance(model.get_submodule(split_name(name)[0]), nn.ModuleList | nn.Sequential)
    return Layer(name, len(norm.weight), attention, feed_forward, listed)
