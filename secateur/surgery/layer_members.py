"""Which rows of a layer's tensors belong to channels that it writes or reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.surgery.layers import is_depthwise, join_name
from secateur.units import Member

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


class Unsupported(Exception):
    """Why the channels of a layer cannot be units."""


@dataclass(frozen=True, slots=True)
class Found:
    """What units own of one layer.

    Args:
        members: rows of its tensors.
        counts: (attribute, by how much each unit raises it) of layers that keep their width in no tensor.
    """

    members: tuple[Member, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


def coupled_rows(layer: nn.Module, writes: bool | None, rows: Collection[int]) -> Iterator[list[int]]:
    """Channels of a layer that can only go together: those of a norm group, and equal offsets of grouped convolutions.

    Raises:
        Unsupported: one of them is not among `rows`, so it belongs to other units.
    """
    if isinstance(layer, nn.GroupNorm):
        each = layer.num_channels // layer.num_groups
        runs = [range(start, start + each) for start in range(0, layer.num_channels, each)]
    elif isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
        channels = layer.out_channels if writes else layer.in_channels
        each = channels // layer.groups
        runs = [range(offset, channels, each) for offset in range(each)]
    else:
        return
    for run in runs:
        held = [row for row in run if row in rows]
        if held and len(held) < len(run):
            raise Unsupported("it shares norm or convolution groups with channels of other layers")
        if held:
            yield held


def members_of(
    layer: nn.Module | nn.Parameter, name: str, writes: bool | None, rows: Int64[Tensor, "units rows"], dim: int
) -> Found:
    """What the units own of a layer.

    Args:
        layer: the layer, or a parameter that belongs to none.
        name: its qualified name.
        writes: True for its outputs, False for its inputs, None where these are the same.
        rows: channels of the layer that each unit owns.
        dim: the parameter's dimension that holds channels, where `layer` is one.

    Raises:
        Unsupported: the layer cannot lose single channels.
    """
    if isinstance(layer, nn.Parameter):
        return Found((Member(name, dim % layer.dim(), _plain(rows, layer.shape[dim])),))
    if isinstance(layer, _ConvNd | nn.Linear):
        return _product(layer, name, writes, rows)
    if isinstance(layer, _NormBase):
        return _norm(layer, name, ("weight", "bias", "running_mean", "running_var"), rows, layer.num_features)
    if isinstance(layer, nn.GroupNorm):
        return _group_norm(layer, name, rows)
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        if len(layer.normalized_shape) != 1 or layer.weight is None:
            raise Unsupported(f"norm {name!r} has no weights, or norms over several dimensions")
        return _norm(layer, name, ("weight", "bias"), rows, len(layer.weight))
    if isinstance(layer, nn.PReLU):
        return _norm(layer, name, ("weight",), rows, layer.num_parameters) if layer.num_parameters > 1 else Found()
    if isinstance(layer, nn.Embedding):
        return Found((Member(join_name(name, "weight"), 1, _plain(rows, layer.embedding_dim)),))
    return _recurrent(layer, name, writes, rows) if isinstance(layer, nn.RNNBase) else Found()


def _plain(rows: Tensor, size: int) -> Tensor | None:
    """None where unit i owns row i and nothing else."""
    return None if rows.shape == (size, 1) and torch.equal(rows[:, 0], torch.arange(size)) else rows


def _product(layer: _ConvNd | nn.Linear, name: str, writes: bool | None, rows: Tensor) -> Found:
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    grouped = isinstance(layer, _ConvNd) and layer.groups > 1
    weight = join_name(name, "weight")
    depthwise = isinstance(layer, _ConvNd) and is_depthwise(layer)
    if depthwise:
        dim = 0
    elif writes:
        dim = 1 if transposed else 0
    else:
        dim = 0 if transposed else 1
    own = rows
    if grouped and not depthwise and dim == 1:
        # Equal offsets in all groups are one unit, and this dimension of the weight holds one group.
        own = torch.stack([torch.unique(unit % layer.weight.shape[1]) for unit in rows])
    members = [Member(weight, dim, _plain(own, layer.weight.shape[dim]))]
    if writes is not False and layer.bias is not None:
        members.append(Member(join_name(name, "bias"), 0, _plain(rows, len(layer.bias))))
    return Found(tuple(members))


def _norm(layer: nn.Module, name: str, tensors: tuple[str, ...], rows: Tensor, size: int) -> Found:
    held = [tensor for tensor in tensors if getattr(layer, tensor, None) is not None]
    if not held:
        return Found(counts=(("num_features", rows.shape[1]),))
    return Found(tuple(Member(join_name(name, tensor), 0, _plain(rows, size)) for tensor in held))


def _group_norm(layer: nn.GroupNorm, name: str, rows: Tensor) -> Found:
    if layer.weight is not None:
        return _norm(layer, name, ("weight", "bias"), rows, layer.num_channels)
    each = layer.num_channels // layer.num_groups
    return Found(counts=(("num_channels", rows.shape[1]), ("num_groups", rows.shape[1] // each)))


def _recurrent(layer: nn.RNNBase, name: str, writes: bool | None, rows: Tensor) -> Found:
    if layer.num_layers > 1 or layer.bidirectional or layer.proj_size:
        raise Unsupported(f"recurrent layer {name!r} has several layers, two directions or a projection")
    if not writes:
        return Found((Member(join_name(name, "weight_ih_l0"), 1, _plain(rows, layer.input_size)),))
    gates = _GATES[layer.mode]
    every = torch.cat([rows + gate * layer.hidden_size for gate in range(gates)], dim=1)
    tensors = ["weight_ih_l0", "weight_hh_l0", *(["bias_ih_l0", "bias_hh_l0"] if layer.bias else [])]
    members = [Member(join_name(name, tensor), 0, _plain(every, gates * layer.hidden_size)) for tensor in tensors]
    members.append(Member(join_name(name, "weight_hh_l0"), 1, _plain(rows, layer.hidden_size)))
    return Found(tuple(members))
