"""What a recipe leaves of a vision transformer, and its folder: its cuts, the blocks that are gone, how tokens go."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from secateur.block_sparse import DENSE_FROM, with_blocks
from secateur.surgery.layers import split_name
from secateur.surgery.manifest import hash_weights
from secateur.surgery.network import Network
from secateur.tensor_files import TensorFormat
from vit import saving
from vit.inputs import example_inputs
from vit.tokens import reduced_model
from vit.tokens.costs import Place
from vit.tokens.pruner import TokenPruner
from vit.tokens.reduced_model import TOKENS, ReducedModel
from vit.tokens.schedule import TokenSchedule

BLOCKS = "blocks.safetensors"
"""The file beside the model's own that says which blocks of its weights are multiplied."""

_FORMAT = TensorFormat("secateur kept blocks", 1, article="")


@dataclass(frozen=True, eq=False)
class TokenPlan:
    """How tokens go: arguments of `vit.tokens.ReducedModel`."""

    pruner: TokenPruner
    schedule: TokenSchedule
    place: Place = "before layer"
    last_layer_fusion: bool = False

    def on(self, model: nn.Module) -> ReducedModel:
        """The model with its tokens reduced, from now on; `release()` ends it."""
        fusion = self.last_layer_fusion
        return ReducedModel(model, self.pruner, self.schedule, place=self.place, last_layer_fusion=fusion)


@dataclass(frozen=True, eq=False)
class PrunedModel:
    """What is left of a model.

    Args:
        network: its module is dense, with zeros where blocks are gone, and sees all tokens.
        tokens: None: all stay.
        blocks: layer -> which blocks of its weight stay.
        dense_from: see `secateur.block_sparse.with_blocks`.
        sparse: whether weights are 0 that have to stay so while the model trains.
    """

    network: Network
    tokens: TokenPlan | None = None
    blocks: Mapping[str, Bool[Tensor, "high wide"]] = field(default_factory=dict)
    dense_from: float = DENSE_FROM
    sparse: bool = False

    def runnable(self) -> nn.Module:
        """A copy that multiplies kept blocks alone, and whose tokens go, in evaluation mode."""
        module = copy.deepcopy(self.network.module).eval()
        sparse = with_blocks(module, self.blocks, self.dense_from) if self.blocks else module
        if self.tokens is None:
            return sparse
        reduced = replace(self.tokens, pruner=copy.deepcopy(self.tokens.pruner)).on(module).eval()
        # Schedules ask for the cost of layers, which dense ones can tell: it is looked up before blocks go.
        reduced.reduction.counts(count_patches(module))
        for name in self.blocks:
            layer, (owner, child) = sparse.get_submodule(name), split_name(name)
            layer._forward_hooks.update(module.get_submodule(name)._forward_hooks)
            setattr(module.get_submodule(owner), child, layer)
        return reduced

    def counts(self, module: nn.Module) -> tuple[int, ...]:
        """Patches that each layer is left with, on images of the model's size.

        Raises:
            ValueError: the schedule does not fit the model, or leaves a layer without patches.
        """
        assert self.tokens is not None
        reduced = self.tokens.on(module)
        try:
            return reduced.reduction.counts(count_patches(module))
        finally:
            reduced.release()

    def with_network(self, network: Network) -> PrunedModel:
        """The same with another network."""
        return replace(self, network=network)


def count_patches(model: nn.Module) -> int:
    """Patches of an image of the size that the model is configured for; errors as for `patch_grid`."""
    rows, columns = patch_grid(model)
    return rows * columns


def patch_grid(model: nn.Module) -> tuple[int, int]:
    """Rows and columns of patches of an image of the size that the model is configured for.

    Raises:
        ValueError: the model has no patch embedding.
    """
    patch = getattr(getattr(model, "config", None), "patch_size", None)
    if patch is None:
        raise ValueError(f"{type(model).__name__} has no configuration with a patch_size")
    height, width = example_inputs(model)["pixel_values"].shape[2:]
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return height // rows, width // columns


def save(
    pruned: PrunedModel,
    folder: str | os.PathLike[str],
    *,
    dense: nn.Module | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a folder that `load` reads. Weights are whole matrices, with zeros where blocks are gone.

    Args:
        pruned: the model.
        folder: where to; other files in it stay, but for those of a former result.
        dense: the model that it was cut from; the manifest then holds the hash of its weights.
        recipe: how it was made.
        metrics: what it was measured to be.

    Raises:
        ValueError: as for `vit.saving.save` and `vit.tokens.reduced_model.save`.
    """
    folder = Path(folder)
    for name in (TOKENS, BLOCKS):
        (folder / name).unlink(missing_ok=True)
    if pruned.tokens is not None:
        reduced = pruned.tokens.on(pruned.network.module)
        try:
            reduced_model.save(reduced, folder, pruned.network)
        finally:
            reduced.release()
    saving.save(pruned.network, folder, dense=dense, recipe=recipe, metrics=metrics)
    if pruned.blocks:
        fields = {"dense_from": pruned.dense_from, "weights_sha256": hash_weights(pruned.network.module)}
        masks = {name: mask.to(torch.uint8).cpu().contiguous() for name, mask in pruned.blocks.items()}
        _FORMAT.save(folder / BLOCKS, masks, fields)


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """Read a model as it is to be run, in evaluation mode: with its cuts, its blocks, and its way with tokens.

    Folders of plain transformers load too.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: a file is damaged, or belongs to another model.
    """
    return load_pruned(folder).runnable()


def load_pruned(folder: str | os.PathLike[str]) -> PrunedModel:
    """Read what `save` wrote, in its parts; errors as for `load`."""
    folder = Path(folder)
    if (folder / TOKENS).is_file():
        reduced = reduced_model.load(folder)
        how = reduced.reduction
        tokens = TokenPlan(how.pruner, how.schedule, how.place, how.last_layer_fusion)
        reduced.release()
    else:
        tokens = None
    network = _network(folder)
    if not (folder / BLOCKS).is_file():
        return PrunedModel(network, tokens)

    def restore(header: dict[str, Any], masks: dict[str, Tensor]) -> PrunedModel:
        if header["weights_sha256"] != hash_weights(network.module):
            raise ValueError("these blocks were kept of another model's weights (weights_sha256)")
        return PrunedModel(network, tokens, {name: mask.bool() for name, mask in masks.items()}, header["dense_from"])

    return _FORMAT.load(folder / BLOCKS, _check, restore)


def _network(folder: Path) -> Network:
    if (folder / saving.MANIFEST).is_file():
        return saving.load_network(folder)
    return Network(saving.load(folder), ())


def _check(header: dict[str, Any]) -> None:
    if not isinstance(header.get("dense_from"), int | float) or not isinstance(header.get("weights_sha256"), str):
        raise ValueError("the header must have dense_from and weights_sha256")


def drops_at(counts: Sequence[int], patches: int) -> tuple[int, ...]:
    """Layers at which patches go."""
    before = (patches, *counts[:-1])
    return tuple(layer for layer, (many, few) in enumerate(zip(before, counts, strict=True)) if few < many)
