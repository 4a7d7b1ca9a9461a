"""What surgery knows of torch's layers: which dimension of a weight reads units, and what follows from its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.surgery.slim_attention import SlimAttention


def split_name(name: str) -> tuple[str, str]:
    """("layer1.conv", "weight") from "layer1.conv.weight"."""
    module, _, tensor = name.rpartition(".")
    return module, tensor


def join_name(module: str, tensor: str) -> str:
    """The qualified name of a layer's tensor, the reverse of `split_name`; the root module's name is empty."""
    return f"{module}.{tensor}" if module else tensor


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers (those that are not in the state dict too), by qualified name, each tensor once."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


def reads(module: nn.Module, tensor: str, dim: int) -> bool:
    """Whether rows of `module.tensor` along `dim` multiply what comes in, so that zeros there hide a unit exactly."""
    if isinstance(module, _ConvNd):
        return tensor == "weight" and dim == (0 if module.transposed else 1) and not is_depthwise(module)
    if isinstance(module, nn.Linear):
        return tensor == "weight" and dim == 1
    if isinstance(module, nn.MultiheadAttention | SlimAttention):
        return tensor.endswith("proj_weight") and dim == 1
    return isinstance(module, nn.RNNBase) and tensor.startswith(("weight_ih", "weight_hh")) and dim == 1


def is_depthwise(module: _ConvNd) -> bool:
    """One filter a channel: the channels that come in are those that go out."""
    return 1 < module.groups == module.in_channels == module.out_channels


def find_quantised(module: nn.Module) -> Iterator[str]:
    """Names of modules and tensors that are quantised, which cannot be cut."""
    for name, child in module.named_modules():
        if type(child).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            yield name or type(child).__name__
    for name, tensor in named_tensors(module).items():
        quantised_weight = isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex())
        if tensor.is_quantized or quantised_weight:
            yield name


def refresh(module: nn.Module, name: str) -> None:
    """Set the attributes of a layer that torch's classes keep beside their weights to what the weights' shapes say.

    Raises:
        ValueError: the shapes are none that the layer can have (a norm group cut in two).
    """
    for kind, follow in _FOLLOW:
        if isinstance(module, kind):
            follow(module, name)
            return


def _follow_linear(module: nn.Linear, name: str) -> None:
    module.out_features, module.in_features = module.weight.shape


def _follow_convolution(module: _ConvNd, name: str) -> None:
    first, second = module.weight.shape[:2]
    if is_depthwise(module):
        module.in_channels = module.out_channels = module.groups = first
        return
    inputs, outputs = (first, second * module.groups) if module.transposed else (second * module.groups, first)
    if inputs % module.groups or outputs % module.groups:
        raise ValueError(f"{name}: {outputs} x {inputs} channels do not divide into {module.groups} groups")
    module.in_channels, module.out_channels = inputs, outputs


def _follow_batch_norm(module: _NormBase, name: str) -> None:
    kept = module.weight if module.weight is not None else module.running_mean
    if kept is not None:
        module.num_features = len(kept)


def _follow_group_norm(module: nn.GroupNorm, name: str) -> None:
    if module.weight is None:
        return
    channels = len(module.weight)
    if channels * module.num_groups % module.num_channels:
        each = module.num_channels // module.num_groups
        raise ValueError(f"{name}: {channels} channels are no whole number of norm groups of {each}")
    module.num_groups = channels * module.num_groups // module.num_channels
    module.num_channels = channels


def _follow_layer_norm(module: nn.LayerNorm | nn.RMSNorm, name: str) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _follow_prelu(module: nn.PReLU, name: str) -> None:
    module.num_parameters = len(module.weight)


def _follow_embedding(module: nn.Embedding, name: str) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _follow_recurrent(module: nn.RNNBase, name: str) -> None:
    shapes = {tensor: parameter.shape for tensor, parameter in module.named_parameters()}
    module.hidden_size = shapes["weight_hh_l0"][1]
    module.input_size = shapes["weight_ih_l0"][1]
    module.flatten_parameters()


def _follow_attention(module: SlimAttention, name: str) -> None:
    inner = module.out_proj.weight.shape[1]
    if inner % module.head_dim:
        raise ValueError(f"{name}: {inner} rows are no whole number of heads of {module.head_dim}")
    module.num_heads = inner // module.head_dim


_FOLLOW: tuple[tuple[type | tuple[type, ...], Callable[..., None]], ...] = (
    (nn.Linear, _follow_linear),
    (_ConvNd, _follow_convolution),
    (_NormBase, _follow_batch_norm),
    (nn.GroupNorm, _follow_group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _follow_layer_norm),
    (nn.PReLU, _follow_prelu),
    (nn.Embedding, _follow_embedding),
    (nn.RNNBase, _follow_recurrent),
    (SlimAttention, _follow_attention),
)


def owned_elements(rows: dict[int, int], shape: torch.Size) -> int:
    """Elements of a tensor that a unit owns who owns `rows[dim]` rows along each dimension, none of them twice."""
    kept = prod(size - rows.get(dim, 0) for dim, size in enumerate(shape))
    return prod(shape) - kept


def shared_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter that has two names -> another of its names."""
    first: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            shared[name] = other
            shared.setdefault(other, name)
    return shared
