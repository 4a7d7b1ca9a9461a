"""LoRAs of a dense model, sliced so that they fit the pruned one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from secateur.surgery.cut import Cuts
from secateur.surgery.layers import join_name
from secateur.surgery.network import Network
from secateur.surgery.stand_in import gone_with

_READS = (".lora_A.weight", ".lora.down.weight", ".lora_down.weight")
_WRITES = (".lora_B.weight", ".lora.up.weight", ".lora_up.weight")
_KEPT = (".alpha",)


def slice_lora(lora: Mapping[str, Tensor], network: Network, dense: nn.Module) -> dict[str, Tensor]:
    """What is left of a LoRA once its model is pruned as the network was.

    The change B A of a weight loses the rows and columns that the weight lost: B its rows, A its columns. Layers that
    are gone lose theirs whole; a 1x1 convolution in the place of a larger one gets the sum of A's taps.

    Args:
        lora: the LoRA's tensors, by the names of peft (`...lora_A.weight`), diffusers (`...lora.down.weight`) or kohya
            (`lora_unet_..._to_q.lora_down.weight`); any prefix may stand before a layer's name.
        network: the pruned network, with its cuts.
        dense: the model that it was cut from, which the LoRA was made for; on the meta device too.

    Returns:
        The sliced tensors, by the same names.

    Raises:
        ValueError: a name is of no layer of the model, or a tensor does not fit the layer.
    """
    layers = _layers(dense)
    sliced = {}
    for name, tensor in lora.items():
        ending = next((ending for ending in (*_READS, *_WRITES, *_KEPT) if name.endswith(ending)), None)
        layer = None if ending is None else _layer_of(name.removesuffix(ending), layers)
        if layer is None or ending is None:
            raise ValueError(f"LoRA tensor {name!r} belongs to no layer of the model")
        kept = tensor if ending in _KEPT else _sliced(name, tensor, layer, network.cuts, dense, ending in _WRITES)
        if kept is not None and not _is_gone(layer, network.cuts):
            sliced[name] = kept
    return sliced


def _layers(dense: nn.Module) -> dict[str, str]:
    """Names of layers as they may stand in a LoRA -> as they are."""
    names = [name for name, layer in dense.named_modules() if isinstance(getattr(layer, "weight", None), nn.Parameter)]
    return {name: name for name in names} | {name.replace(".", "_"): name for name in names}


def _layer_of(name: str, layers: Mapping[str, str]) -> str | None:
    """The layer whose name the LoRA's name ends in, after any prefix; the longest that fits."""
    for separator in (".", "_"):
        steps = name.split(separator)
        for start in range(len(steps)):
            found = layers.get(separator.join(steps[start:]))
            if found is not None:
                return found
    return None


def _sliced(name: str, tensor: Tensor, layer: str, cuts: Cuts, dense: nn.Module, writes: bool) -> Tensor | None:
    """The rows of B (dimension 0) or columns of A (dimension 1) that stay."""
    dim = 0 if writes else 1
    weight = dense.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    if tensor.dim() < 2 or tensor.shape[dim] != weight.shape[dim]:
        raise ValueError(
            f"LoRA tensor {name!r} of shape {tuple(tensor.shape)} does not fit {layer!r} of shape {tuple(weight.shape)}"
        )
    kept = cuts.rows.get((join_name(layer, "weight"), dim))
    if kept is not None:
        tensor = tensor.index_select(dim, kept.rows.to(tensor.device))
    _, block = cuts.blocks.get(layer, ("", None))
    if block is not None and block.leaves == "pointwise" and tensor.dim() == 4:
        tensor = tensor.sum(dim=(2, 3), keepdim=True)
    return tensor


def _is_gone(layer: str, cuts: Cuts) -> bool:
    blocks = {name: block for name, (_, block) in cuts.blocks.items() if block.leaves != "pointwise"}
    return gone_with(f"{layer}.weight", blocks)


def renamed_lora(lora: Mapping[str, Tensor], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The LoRA under the names of a model whose transformer blocks moved up (`renamed` of its manifest)."""
    return {_moved(name, renamed.items()): tensor for name, tensor in lora.items()}


def _moved(name: str, renamed: Iterable[tuple[str, str]]) -> str:
    for old, new in renamed:
        for before, after in ((f"{old}.", f"{new}."), (f"{old}_".replace(".", "_"), f"{new}_".replace(".", "_"))):
            start = name.find(before)
            if start == 0 or (start > 0 and name[start - 1] in "._"):
                return name[:start] + after + name[start + len(before) :]
    return name
