"""Networks with block-sparse layers as files: what is kept as blocked CSR, in one safetensors file, without pickle.

As for cut networks (`secateur.surgery.manifest`), the code comes from the caller, and the file is believed in nothing:
its cuts, layers, shapes and indices have to fit the network that the caller builds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.block_sparse import BlockSparseLinear
from secateur.blocks import BlockedCSR
from secateur.surgery.cut import Cuts, cut_module
from secateur.surgery.layers import join_name, named_tensors, split_name
from secateur.surgery.manifest import cuts_from_json, cuts_to_json
from secateur.surgery.network import Network
from secateur.tensor_files import TensorFormat

_FORMAT = TensorFormat("secateur block-sparse network", 1)
_MATRIX = ("values", "col_indices", "crow_indices")
_SIZES = ("in_features", "out_features", "rows", "columns", "kept")


def save_block_sparse(module: nn.Module, path: str | os.PathLike[str], network: Network | None = None) -> int:
    """Write a network in which some linear layers are `BlockSparseLinear`; returns the bytes.

    Args:
        module: the network.
        path: the file, which is replaced.
        network: where channels were cut before blocks went (`secateur.block_compaction`): the cut network, whose cuts
            are written with it.
    """
    cuts = {} if network is None else cuts_to_json(network)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, BlockSparseLinear)}
    tensors = {name: tensor for name, tensor in named_tensors(module).items() if split_name(name)[0] not in layers}
    for name, layer in layers.items():
        matrix = layer.matrix()
        tensors |= {join_name(name, part): getattr(matrix, part) for part in _MATRIX}
        if layer.bias is not None:
            tensors[join_name(name, "bias")] = layer.bias
    fields = {"layers": {name: _sizes(layer) for name, layer in layers.items()}, "cuts": cuts}
    return _FORMAT.save(
        path, {name: each.detach().cpu().clone().contiguous() for name, each in tensors.items()}, fields
    )


def load_block_sparse(path: str | os.PathLike[str], build: Callable[[], nn.Module]) -> nn.Module:
    """Read a network that `save_block_sparse` wrote. It gives the outputs that were saved, bit for bit.

    Args:
        path: the file.
        build: makes the dense network; called on the meta device, so that it takes no memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or the first thing in which file and network do not fit one another.
    """
    with torch.device("meta"):
        dense = build()

    def check(header: dict[str, Any]) -> None:
        if not isinstance(header.get("layers"), dict) or not isinstance(header.get("cuts"), dict):
            raise ValueError("the header must have layers and cuts")

    def restore(header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
        cuts = cuts_from_json(header["cuts"], dense, Path(path)) if header["cuts"] else Cuts()
        module = cut_module(dense, cuts)
        for name, sizes in header["layers"].items():
            owner, child = split_name(name)
            layer = _restored(name, dict(module.named_modules()).get(name), sizes, tensors)
            if not name:
                module = layer
            else:
                setattr(module.get_submodule(owner), child, layer)
        _fill(module, set(header["layers"]), tensors)
        return module

    return _FORMAT.load(path, check, restore)


def _sizes(layer: BlockSparseLinear) -> dict[str, int]:
    kept, columns, rows = layer.blocks.shape
    values = (layer.in_features, layer.out_features, rows, columns, kept)
    return dict(zip(_SIZES, values, strict=True))


def _restored(name: str, dense: nn.Module | None, sizes: Any, tensors: Mapping[str, Tensor]) -> BlockSparseLinear:
    """The layer that the sizes and tensors describe, in the place of a dense one."""
    if not isinstance(dense, nn.Linear):
        raise ValueError(f"the network has no linear layer {name!r}")
    whole = isinstance(sizes, dict) and all(type(sizes.get(key)) is int and sizes[key] >= 0 for key in _SIZES)
    if not whole or not sizes["rows"] or not sizes["columns"]:
        raise ValueError(f"layer {name!r} must have whole numbers {_SIZES}, found {sizes!r}")
    if (sizes["in_features"], sizes["out_features"]) != (dense.in_features, dense.out_features):
        raise ValueError(f"layer {name!r} was {sizes}, but the network's is {dense}")
    values, columns, starts = (tensors[join_name(name, part)] for part in _MATRIX)
    if columns.dtype != torch.int64 or starts.dtype != torch.int64 or not values.is_floating_point():
        raise ValueError(f"blocks of {name!r} must be of numbers, with int64 indices")
    shape = (sizes["kept"], sizes["rows"], sizes["columns"])
    high, wide = sizes["out_features"] // shape[1], sizes["in_features"] // shape[2]
    if values.shape != shape or len(starts) != high + 1 or (high * shape[1], wide * shape[2]) != dense.weight.shape:
        raise ValueError(f"blocks of {name!r} are {tuple(values.shape)}, which do not make up {sizes}")
    bias = tensors.get(join_name(name, "bias"))
    if (bias is None) != (dense.bias is None):
        raise ValueError(f"layer {name!r} has a bias in one of file and network only")
    return BlockSparseLinear(BlockedCSR(values, columns, starts, wide), bias).train(dense.training)


def _fill(module: nn.Module, sparse: set[str], tensors: Mapping[str, Tensor]) -> None:
    """Give the rest of the module the file's tensors, each of its own shape and kind; no more and no fewer."""
    wanted = {name: each for name, each in named_tensors(module).items() if split_name(name)[0] not in sparse}
    known = set(wanted) | {join_name(layer, part) for layer in sparse for part in (*_MATRIX, "bias")}
    strange = sorted(set(tensors) - known)
    if strange:
        raise ValueError(f"tensor {strange[0]!r} is none of the network's")
    loaded: dict[int, Any] = {}
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"no tensor {name!r}, which the network has")
        value = tensors[name]
        if value.shape != tensor.shape or value.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name!r} is {value.dtype} {tuple(value.shape)}, the network's {tuple(tensor.shape)}")
        parameter = isinstance(tensor, nn.Parameter)
        loaded[id(tensor)] = nn.Parameter(value, requires_grad=tensor.requires_grad) if parameter else value
    for owner in module.modules():
        held_by: dict[str, Any]
        for held_by in (owner._parameters, owner._buffers):
            held_by.update({key: loaded[id(each)] for key, each in held_by.items() if id(each) in loaded})
