"""A model that runs on fewer tokens for good, and its folder: weights, manifest, and a file for how tokens go."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from torch import Tensor, nn

from secateur.surgery import manifest
from secateur.surgery.network import Network
from secateur.tensor_files import TensorFormat
from vit.tokens.cls_attention import ClsAttention
from vit.tokens.costs import Place
from vit.tokens.cropr import Cropr, LinearScorer
from vit.tokens.dynamic_vit import DynamicViT
from vit.tokens.pruner import TokenPruner
from vit.tokens.random_dropping import RandomDropping
from vit.tokens.reduce import TokenReduction
from vit.tokens.schedule import Counts, KeepRates, PerLayer, Target, TokenSchedule
from vit.tokens.token_norm import TokenNorm
from vit.tokens.tome import TokenMerging

TOKENS = "tokens.safetensors"
"""The file beside the model's own."""

PRUNERS: tuple[type[TokenPruner], ...] = (
    ClsAttention,
    Cropr,
    DynamicViT,
    LinearScorer,
    RandomDropping,
    TokenMerging,
    TokenNorm,
)
SCHEDULES: tuple[type[TokenSchedule], ...] = (Counts, KeepRates, PerLayer, Target)
_FORMAT = TensorFormat("secateur token reduction", 1)


class ReducedModel(nn.Module):
    """A model together with the pruner of its tokens: called as the model is, trained, compiled and exported as one.

    A pruner with weights is its submodule, so that `parameters()`, `train()` and `to()` reach it.

    Args: as for `reduce_tokens`.

    Attributes:
        reduction: what happened in the last forward: maps, auxiliary predictions, losses, costs.
    """

    def __init__(
        self,
        model: nn.Module,
        pruner: TokenPruner,
        schedule: TokenSchedule,
        *,
        place: Place = "before layer",
        prefix: int | None = None,
        last_layer_fusion: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.pruner = pruner
        self.reduction = TokenReduction(
            model, pruner, schedule, place=place, prefix=prefix, last_layer_fusion=last_layer_fusion
        )
        self.reduction.install(model)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model says."""
        return self.model(*args, **kwargs)

    def release(self) -> nn.Module:
        """The model itself, which sees all tokens again."""
        self.reduction.remove()
        return self.model


def save(reduced: ReducedModel, folder: str | os.PathLike[str], network: Network | None = None) -> None:
    """Write the model, and beside it what reduces its tokens, into a folder.

    Args:
        reduced: whose pruner is one of this package.
        folder: where to; other files in it stay.
        network: the model with its history of cuts, if any were made.

    Raises:
        ValueError: the pruner or schedule is none of this package, or the network is of another model.
    """
    how = reduced.reduction
    kinds = {"pruner": (how.pruner, PRUNERS), "schedule": (how.schedule, SCHEDULES)}
    for name, (thing, known) in kinds.items():
        if type(thing) not in known:
            raise ValueError(f"only a {name} of this package can be saved, not {type(thing).__name__}")
    if network is not None and network.module is not reduced.model:
        raise ValueError("the network to save is not the one whose tokens are reduced")
    _save_model(Network(reduced.model, ()) if network is None else network, Path(folder))
    weights = how.pruner.state_dict() if isinstance(how.pruner, nn.Module) else {}
    fields = {
        "pruner": {"name": type(how.pruner).__name__, "arguments": how.pruner.arguments()},
        "schedule": {"name": type(how.schedule).__name__, "arguments": _plain(asdict(how.schedule))},  # type: ignore[call-overload]
        "place": how.place,
        "prefix": how.prefix,
        "last_layer_fusion": how.last_layer_fusion,
        "layers": len(how.layers),
        "weights_sha256": manifest.hash_weights(reduced.model),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    _FORMAT.save(Path(folder) / TOKENS, tensors, fields)


def load(folder: str | os.PathLike[str], build: Callable[[], nn.Module] | None = None) -> ReducedModel:
    """Read what `save` wrote, in evaluation mode, on the CPU. It gives the outputs that were saved, bit for bit.

    Args:
        folder: the folder.
        build: makes the dense model, for one that is none of transformers; None: the folder's configuration does.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or pruner, schedule and model do not fit one another.
    """
    if not (Path(folder) / TOKENS).is_file():
        raise FileNotFoundError(f"{Path(folder) / TOKENS}: no such file")
    model = _load_model(Path(folder), build).eval()
    return _FORMAT.load(Path(folder) / TOKENS, _check, lambda header, tensors: _restored(model, header, tensors)).eval()


def _restored(model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> ReducedModel:
    if manifest.hash_weights(model) != header["weights_sha256"]:
        raise ValueError("these tokens were reduced in another model (weights_sha256)")
    pruner = _made(header["pruner"], PRUNERS, "pruner")
    if isinstance(pruner, nn.Module):
        pruner.load_state_dict(tensors)
    reduced = ReducedModel(
        model,
        pruner,
        _made(_keyed(header["schedule"]), SCHEDULES, "schedule"),
        place=header["place"],
        prefix=header["prefix"],
        last_layer_fusion=header["last_layer_fusion"],
    )
    if len(reduced.reduction.layers) != header["layers"]:
        raise ValueError(f"the model has {len(reduced.reduction.layers)} layers, the schedule {header['layers']}")
    return reduced


def _check(header: dict[str, Any]) -> None:
    prefix, layers, fusion = (header.get(name) for name in ("prefix", "layers", "last_layer_fusion"))
    if header.get("place") not in get_args(Place):
        raise ValueError(f"place must be one of {get_args(Place)}, got {header.get('place')!r}")
    if type(prefix) is not int or prefix < 0 or type(layers) is not int or type(fusion) is not bool:
        raise ValueError(f"prefix, layers and last_layer_fusion are no counts and flag: {prefix}, {layers}, {fusion}")


def _made(described: Any, known: tuple[type[Any], ...], what: str) -> Any:
    """One of the known classes, by name and arguments; nothing else is made, whatever the file says."""
    kinds = {kind.__name__: kind for kind in known}
    if not isinstance(described, dict) or described.get("name") not in kinds:
        raise ValueError(f"the {what} must be one of {', '.join(kinds)}, got {described!r:.80}")
    return kinds[described["name"]](**described["arguments"])


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Keep rates by layer as pairs: JSON's keys are text."""
    return {
        name: list(map(list, value.items())) if isinstance(value, dict) else value for name, value in fields.items()
    }


def _keyed(described: Any) -> Any:
    if not isinstance(described, dict) or described.get("name") != KeepRates.__name__:
        return described
    return {"name": KeepRates.__name__, "arguments": {"rates": {int(k): v for k, v in described["arguments"]["rates"]}}}


def _save_model(network: Network, folder: Path) -> None:
    from vit import saving  # with it comes transformers, which is slow to import

    if saving.is_of_transformers(network.module):
        saving.save(network, folder)
    else:
        manifest.save(network, folder)


def _load_model(folder: Path, build: Callable[[], nn.Module] | None) -> nn.Module:
    if build is not None:
        return manifest.load(folder, build).module
    from vit import saving

    return saving.load_network(folder).module
