"""Pruned diffusion models as folders that load back bit for bit, without pickle.

A pruned network is its dense `config.json`, its weights, and a manifest of every cut with recipe and metrics. The
weights have a name of their own: under diffusers' name, `from_pretrained(..., ignore_mismatched_sizes=True)` would load
such a folder and silently start every pruned layer anew. A cut that the configuration can express (whole transformer
blocks) is written under diffusers' names, and loads without this package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from diffusion.plain import as_plain
from secateur.files import replacing_folder
from secateur.surgery.cut import Cuts, cut_module
from secateur.surgery.layers import named_tensors
from secateur.surgery.manifest import cuts_from_json, cuts_to_json, fill, hash_file, hash_weights
from secateur.surgery.network import Network

CONFIG = "config.json"
MANIFEST = "prune_manifest.json"
WEIGHTS = "pruned_model.safetensors"
PLAIN_WEIGHTS = "diffusion_pytorch_model.safetensors"
MODEL_INDEX = "model_index.json"
_FORMAT = "secateur pruned diffusion model"
_VERSION = 1


def save(
    network: Network,
    folder: str | os.PathLike[str],
    *,
    dense: nn.Module | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write a pruned network as a folder that `load` reads.

    Args:
        network: a network over a model of diffusers, with its history of cuts.
        folder: where to; other files in it stay, but for weights of a former version.
        dense: the model that it was cut from; the manifest then holds the hash of its weights.
        recipe: how it was made; anything that JSON can hold.
        metrics: what it was measured to be; likewise.

    Raises:
        ValueError: the model has no configuration, holds meta tensors, or recipe or metrics are no JSON.
    """
    config = getattr(network.module, "config", None)
    if config is None or not hasattr(network.module, "save_config"):
        raise ValueError(f"{type(network.module).__name__} is no model of diffusers: it has no configuration")
    if any(tensor.is_meta for tensor in named_tensors(network.module).values()):
        raise ValueError("the network is on the meta device, so there are no weights to save")
    plain = as_plain(network)
    written = network.module if plain is None else plain.model
    tensors = named_tensors(written) if plain is None else written.state_dict()
    weights = WEIGHTS if plain is None else PLAIN_WEIGHTS
    fields: dict[str, Any] = {"recipe": recipe, "metrics": metrics}
    fields |= {"dense_sha256": None if dense is None else hash_weights(dense), **cuts_to_json(network)}
    if plain is not None:
        fields |= {"plain": True, "renamed": dict(plain.renamed)}
    try:
        with replacing_folder(folder, index=MANIFEST, former=(WEIGHTS, PLAIN_WEIGHTS)) as temporary:
            contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary / weights, {"format": "pt"})
            written.save_config(temporary)  # type: ignore[operator]
            manifest: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "class": type(written).__name__}
            manifest |= {"weights": weights, "weights_sha256": hash_file(temporary / weights), **fields}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    except TypeError as error:
        raise ValueError(f"the recipe or the metrics are no JSON: {error}") from error


def load_network(folder: str | os.PathLike[str]) -> Network:
    """Read a pruned network, in evaluation mode, on the CPU, with its cuts but without groups (`prunable` finds them).

    One that plain diffusers can load too has no cuts: it is dense in the numbering of its own configuration.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or manifest, configuration and weights do not fit one another.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    weights = folder / (PLAIN_WEIGHTS if manifest.get("plain") else WEIGHTS)
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file")
    if hash_file(weights) != manifest.get("weights_sha256"):
        raise ValueError(f"{weights}: these are not the weights that {MANIFEST} was written with (weights_sha256)")
    kind, config = _model_class(folder, manifest), _read_json(folder / CONFIG)
    if manifest.get("plain"):
        return Network(kind.from_pretrained(folder).eval(), ())
    with torch.device("meta"):
        dense = _built(kind, config, folder)
    cuts: Cuts = cuts_from_json(manifest, dense, folder / MANIFEST)
    module = cut_module(dense, cuts)
    fill(module, weights)
    return Network(module.eval(), (), cuts=cuts)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a pruned network: format, class, recipe, metrics, hashes, cuts.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged or of another version.
    """
    path = Path(folder) / MANIFEST
    manifest = _read_json(path)
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{path}: not a manifest of a pruned diffusion model (format must be {_FORMAT!r})")
    if manifest.get("version") != _VERSION:
        raise ValueError(f"{path}: version {manifest.get('version')!r} is unknown; this reads version {_VERSION}")
    return manifest


def load(folder: str | os.PathLike[str], **options: Any) -> Any:
    """Read what was saved: the pruned model, or the whole pipeline where the folder holds one.

    Args:
        folder: of `save` or `save_pipeline`; folders of plain diffusers load too.
        options: of a pipeline: as for its `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: as for `load_network`, or options that would hide that weights do not fit.
    """
    folder = Path(folder)
    refuse_mismatched(options)
    if (folder / MODEL_INDEX).is_file():
        return PrunedPipeline.from_pretrained(folder, **options)
    if options:
        raise ValueError(f"{folder} holds one network, which takes no options; got {sorted(options)}")
    if (folder / MANIFEST).is_file():
        return load_network(folder).module
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: neither a pipeline ({MODEL_INDEX}) nor a model ({CONFIG})")
    return _model_class(folder, {}).from_pretrained(folder).eval()


def refuse_mismatched(options: Mapping[str, Any]) -> None:
    """Raise ValueError for the option of diffusers that starts layers anew whose sizes do not fit."""
    if options.get("ignore_mismatched_sizes"):
        raise ValueError(
            "ignore_mismatched_sizes would replace every pruned layer by random weights of the dense size; "
            "leave it out: the manifest says what size the layers have"
        )


def save_pipeline(
    pipeline: Any, networks: Mapping[str, Network], folder: str | os.PathLike[str], **options: Any
) -> None:
    """Write a pipeline of diffusers whose components of these names are pruned.

    Args:
        pipeline: its other components are written as they are. It is not changed.
        networks: component name -> the pruned network.
        folder: where to.
        options: `recipe`, `metrics` of `save`, the same for each network.

    Raises:
        ValueError: the pipeline has no component of a name; or as for `save`.
    """
    missing = sorted(set(networks) - set(pipeline.components))
    if missing:
        raise ValueError(
            f"{type(pipeline).__name__} has no component {missing[0]!r}; it has {sorted(pipeline.components)}"
        )
    folder = Path(folder)
    kept = {name: getattr(pipeline, name) for name in networks}
    index = {name: pipeline.config[name] for name in networks}
    try:
        pipeline.register_modules(**dict.fromkeys(networks))
        pipeline.save_pretrained(folder)
    finally:
        pipeline.register_modules(**kept)
    entries = _read_json(folder / MODEL_INDEX)
    for name, network in networks.items():
        save(network, folder / name, **options)
        entries[name] = list(index[name]) if index[name][0] else ["diffusers", type(network.module).__name__]
    (folder / MODEL_INDEX).write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class PrunedPipeline:
    """Loads pipelines of diffusers some of whose networks are pruned."""

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str], pipeline_class: Any = None, **options: Any) -> Any:
        """The pipeline, an object of its own class, with its pruned networks in their places.

        Args:
            folder: of `save_pipeline`; a folder of plain diffusers loads too.
            pipeline_class: the class to make; None: the one that the folder names, of diffusers or of this package.
            options: as for the class's `from_pretrained`.

        Raises:
            FileNotFoundError: the folder holds no pipeline.
            ValueError: `ignore_mismatched_sizes` is set; or as for `load_network`.
        """
        refuse_mismatched(options)
        folder = Path(folder)
        entries = _read_json(folder / MODEL_INDEX)
        pruned = [name for name in entries if (folder / name / MANIFEST).is_file() and name not in options]
        networks = {name: load_network(folder / name).module for name in pruned}
        kind = pipeline_class or _pipeline_class(str(entries.get("_class_name")), folder)
        return kind.from_pretrained(folder, **networks, **options)


def _pipeline_class(name: str, folder: Path) -> Any:
    import diffusers

    from diffusion import pipeline as own

    found = getattr(own, name, None) or getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(f"{folder / MODEL_INDEX}: no pipeline of diffusers or secateur is called {name!r}")
    return found


def _model_class(folder: Path, manifest: Mapping[str, Any]) -> Any:
    import diffusers

    name = _read_json(folder / CONFIG).get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not isinstance(found, type) or not issubclass(found, diffusers.ModelMixin):
        raise ValueError(f"{folder / CONFIG}: _class_name {name!r} is no model of diffusers")
    if manifest.get("class", name) != name:
        raise ValueError(f"{folder}: {MANIFEST} is of a {manifest['class']}, {CONFIG} of a {name}")
    return found


def _built(kind: Any, config: Mapping[str, Any], folder: Path) -> nn.Module:
    make: Callable[..., nn.Module] = kind.from_config
    try:
        return make(config)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{folder / CONFIG}: no {kind.__name__} can be built from it ({error})") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold an object, found {type(value).__name__}")
    return value
