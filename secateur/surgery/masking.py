"""Masks that hide units of a network, softly and differentiably, while a context is open.

A unit is hidden where it is **read**: the columns of the next layers' weights that belong to it are multiplied by its
mask. Whatever lies between (bias, activation, batch norm, pooling) acts on one channel at a time, so a mask of 0 is the
cut itself, for any activation, sigmoid included. Hiding it where it is written would not be: a batch norm's shift or
sigmoid(0) = 0.5 would bring it back. Two things need more: a layer norm over the units counts them by their masks, and
a block is masked at its output.

Weights are multiplied when they are read, not when the context opens: each forward has a graph of its own, gradient
checkpointing recomputes the same, and layers that read another module's weights (`nn.MultiheadAttention`) see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.surgery.layers import split_name
from secateur.surgery.stand_in import Block, first_input, stand_in


@dataclass(frozen=True, slots=True)
class Scale:
    """Rows of a tensor along `dim` (units, rows per unit) that are multiplied by the units' mask (units,)."""

    dim: int
    rows: Tensor
    mask: Tensor


class Masked:
    """Marks the class that a module has while one of its tensors is masked."""


@contextmanager
def masked_tensors(module: nn.Module, scales: Mapping[str, Sequence[Scale]]) -> Iterator[None]:
    """While the context is open, reading the named parameters gives them with their rows multiplied."""
    by_owner: dict[str, dict[str, Sequence[Scale]]] = {}
    for name, entries in scales.items():
        owner, tensor = split_name(name)
        by_owner.setdefault(owner, {})[tensor] = entries
    layers = [(_layer(module, name), tensors) for name, tensors in by_owner.items()]
    kinds = [type(layer) for layer, _ in layers]
    try:
        for layer, tensors in layers:
            layer.__class__ = _masked_class(type(layer), tensors)
        yield
    finally:
        for (layer, _), kind in zip(layers, kinds, strict=True):
            layer.__class__ = kind


def _layer(module: nn.Module, name: str) -> nn.Module:
    """The submodule of that name. `get_submodule` asks `__getattr__`, which is slow in the models of diffusers."""
    for step in filter(None, name.split(".")):
        module = module._modules[step]  # type: ignore[assignment]
    return module


def _masked_class(kind: type[nn.Module], tensors: Mapping[str, Sequence[Scale]]) -> type[nn.Module]:
    """A subclass of `kind` whose named parameters are read through their masks."""
    members: dict[str, Any] = {name: _property(kind, name, scales) for name, scales in tensors.items()}
    if issubclass(kind, nn.RNNBase):
        # torch's recurrent layers read this list instead of the parameters.
        members |= {"_flat_weights": property(_flat_weights, _ignore), "flatten_parameters": lambda self: None}
    return type(kind.__name__, (kind, Masked), members)


def _flat_weights(layer: nn.RNNBase) -> list[Tensor]:
    return [getattr(layer, name) for name in layer._flat_weights_names]


def _ignore(layer: nn.RNNBase, weights: list[Tensor]) -> None:
    """torch refreshes the list when it sees other weights than before; the list is always fresh here."""


def _property(kind: type[nn.Module], name: str, scales: Sequence[Scale]) -> property:
    inherited = getattr(kind, name, None)

    def read(module: nn.Module) -> Tensor:
        outer = inherited.fget if isinstance(inherited, property) else None
        tensor: Any = module._parameters[name] if outer is None else outer(module)
        for scale in scales:
            shape = [1] * tensor.dim()
            shape[scale.dim] = -1
            tensor = tensor * spread(scale, tensor.shape[scale.dim], tensor).reshape(shape)
        return tensor

    return property(read)


def spread(scale: Scale, size: int, like: Tensor) -> Tensor:
    """(size,) ones, with the mask of each unit at its rows."""
    mask = scale.mask.to(like.device, like.dtype)
    rows = scale.rows.to(like.device)
    return torch.ones(size, dtype=like.dtype, device=like.device).index_copy(
        0, rows.flatten(), mask.repeat_interleave(rows.shape[1])
    )


@contextmanager
def masked_norm(norm: nn.LayerNorm | nn.RMSNorm, scales: Sequence[Scale]) -> Iterator[None]:
    """While the context is open, the norm counts each unit by its mask: at 0, as if it were not there."""

    def count_by_mask(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = first_input(args, kwargs)
        weights = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        for scale in scales:
            weights = weights * spread(scale, x.shape[-1], x)
        # The difference is exactly 0 under a mask of ones, so the norm's own output stays bit for bit.
        return output + (_weighted_norm(norm, x, weights) - _weighted_norm(norm, x, torch.ones_like(weights)))

    handle = norm.register_forward_hook(count_by_mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _weighted_norm(norm: nn.LayerNorm | nn.RMSNorm, x: Tensor, weights: Tensor) -> Tensor:
    """Layer norm whose mean and variance weight each feature, (..., features)."""
    total = weights.sum().clamp(min=torch.finfo(x.dtype).tiny)
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    if isinstance(norm, nn.LayerNorm):
        x = x - (x * weights).sum(dim=-1, keepdim=True) / total
    normed = x * torch.rsqrt((x * x * weights).sum(dim=-1, keepdim=True) / total + eps)
    normed = normed if norm.weight is None else normed * norm.weight
    bias = getattr(norm, "bias", None)
    return normed if bias is None else normed + bias


@contextmanager
def masked_block(module: nn.Module, block: Block, mask: Callable[[], Tensor]) -> Iterator[None]:
    """While the context is open, the block's output is drawn towards what the block would leave if it were cut out."""
    replacement = stand_in(module.get_submodule(block.module), block)

    def draw(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        outputs = output if isinstance(output, tuple) else (output,)
        expected = len(block.arguments) or block.outputs
        streams = [index for index, argument in enumerate(block.arguments or ("first",)) if argument]
        if len(outputs) != expected or not all(isinstance(outputs[index], Tensor) for index in streams):
            raise ValueError(f"block {block.module!r} returns {len(outputs)} outputs; its Block says {expected}")
        left = replacement(*args, **kwargs)
        left = left if isinstance(left, tuple) else (left,)
        strength = mask()
        drawn = list(outputs)
        for index in streams:
            # The output comes first: at a strength of 1 it is then kept bit for bit, strides too.
            end = outputs[index]
            drawn[index] = torch.lerp(end, left[index], 1 - strength.to(end.device, end.dtype))
        return tuple(drawn) if isinstance(output, tuple) else drawn[0]

    handle = module.get_submodule(block.module).register_forward_hook(draw, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
