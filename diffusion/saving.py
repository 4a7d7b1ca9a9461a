"""Pruned diffusion models as folders that load back bit for bit, without pickle.

A pruned network is a `secateur.surgery.model_folder`: its dense `config.json`, its weights, and a manifest of every cut
with recipe and metrics. Whole transformer blocks that went are a cut that the configuration can express.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diffusion.architectures import COMPONENTS, built, read_architecture, without_warnings
from diffusion.plain import as_plain
from diffusion.weights import PLAIN_WEIGHTS, check_weights, from_pretrained, load_pretrained, shapes
from secateur.surgery.model_folder import (
    CONFIG,
    MANIFEST,
    ModelFolder,
    read_json,
    rebuild,
    refuse_mismatched,
)
from secateur.surgery.network import Network

MODEL_INDEX = "model_index.json"
_FOLDERS = ModelFolder("diffusion model", PLAIN_WEIGHTS)


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
    plain = as_plain(network)
    written = network.module if plain is None else plain.model
    write_config: Any = written.save_config
    _FOLDERS.write(network, folder, write_config, plain=plain, dense=dense, recipe=recipe, metrics=metrics)


def load_network(folder: str | os.PathLike[str]) -> Network:
    """Read a pruned network, in evaluation mode, on the CPU, with its cuts but without groups (`prunable` finds them).

    One that plain diffusers can load too has no cuts: it is dense in the numbering of its own configuration.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or manifest, configuration and weights do not fit one another.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _FOLDERS.check_weights(folder, manifest)
    architecture = read_architecture(folder / CONFIG)
    if manifest.get("class", architecture.kind) != architecture.kind:
        raise ValueError(f"{folder}: {MANIFEST} is of a {manifest['class']}, {CONFIG} of a {architecture.kind}")
    if manifest.get("plain"):
        return Network(load_pretrained(folder), ())
    return rebuild(architecture.build("meta"), folder, manifest)


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a pruned network: format, class, recipe, metrics, hashes, cuts.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged or of another version.
    """
    return _FOLDERS.read_manifest(folder)


def load(folder: str | os.PathLike[str], **options: Any) -> Any:
    """Read what was saved: the pruned model, or the whole pipeline where the folder holds one.

    Args:
        folder: of `save` or `save_pipeline`; folders of plain diffusers load too.
        options: of a pipeline: as for its `from_pretrained`.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: as for `load_network`, or options that would hide that weights do not fit; there are no safetensors.
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
    return load_pretrained(folder)


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
        with without_warnings():  # of the components that are written afterwards
            pipeline.save_pretrained(folder)
    finally:
        pipeline.register_modules(**kept)
    entries = read_json(folder / MODEL_INDEX)
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
            FileNotFoundError: the folder holds no pipeline, or a part of it has no safetensors.
            ValueError: `ignore_mismatched_sizes` is set; a part is damaged; the weights of the one that denoises do not
                fit its configuration; or as for `load_network`.
        """
        refuse_mismatched(options)
        folder = Path(folder)
        entries = read_json(folder / MODEL_INDEX)
        kind = pipeline_class or _pipeline_class(str(entries.get("_class_name")), folder)
        for path in sorted(folder.glob("*/*.safetensors")):
            shapes(path)
        _check_scheduler(folder, entries)
        parts = [name for name in entries if (folder / name / CONFIG).is_file() and name not in options]
        pruned = [name for name in parts if (folder / name / MANIFEST).is_file()]
        for name in set(parts).intersection(COMPONENTS).difference(pruned):
            check_weights(folder / name, options.get("variant"))
        networks = {name: load_network(folder / name).module for name in pruned}
        return from_pretrained(kind, folder, **networks, **options)


def _check_scheduler(folder: Path, entries: Mapping[str, Any]) -> None:
    """Raise ValueError where none can be built: diffusers would not say from which file."""
    import diffusers

    path = folder / "scheduler" / "scheduler_config.json"
    library, name = entries.get("scheduler") or (None, None)
    kind = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if kind is not None and path.is_file():
        built(kind, read_json(path), path)


def _pipeline_class(name: str, folder: Path) -> Any:
    import diffusers

    from diffusion import pipeline as own

    found = getattr(own, name, None) or getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.DiffusionPipeline):
        raise ValueError(f"{folder / MODEL_INDEX}: no pipeline of diffusers or secateur is called {name!r}")
    return found
