"""Pruned vision transformers as folders that load back bit for bit, without pickle.

A pruned network is a `secateur.surgery.model_folder`: its dense `config.json`, its weights, and a manifest of every cut
with recipe and metrics. What is cut the same in every layer is written so that plain transformers loads it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.surgery.model_folder import CONFIG, MANIFEST, ModelFolder, read_json, rebuild
from secateur.surgery.network import Network
from vit.plain import as_plain

PLAIN_WEIGHTS = "model.safetensors"
_FOLDERS = ModelFolder("vision transformer", PLAIN_WEIGHTS)


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
        network: a network over a model of transformers, with its history of cuts.
        folder: where to; other files in it stay (such as `preprocessor_config.json`), but for former weights.
        dense: the model that it was cut from; the manifest then holds the hash of its weights.
        recipe: how it was made; anything that JSON can hold.
        metrics: what it was measured to be; likewise.

    Raises:
        ValueError: the model is none of transformers, holds meta tensors, or recipe or metrics are no JSON.
    """
    if not is_of_transformers(network.module):
        raise ValueError(
            f"{type(network.module).__name__} is no model of transformers: it has no configuration. "
            "Save it with secateur.surgery.manifest, which takes the code that builds it"
        )
    plain = as_plain(network)
    written: Any = network.module if plain is None else plain.model
    config = copy.deepcopy(written.config)
    config.architectures = [type(network.module).__name__]
    _FOLDERS.write(network, folder, config.save_pretrained, plain=plain, dense=dense, recipe=recipe, metrics=metrics)


def is_of_transformers(model: nn.Module) -> bool:
    """Whether the model has a configuration that transformers could build it from."""
    return hasattr(getattr(model, "config", None), "save_pretrained")


def load_network(folder: str | os.PathLike[str]) -> Network:
    """Read a pruned network, in evaluation mode, on the CPU, with its cuts but without groups (`prunable` finds them).

    One that plain transformers can load too has no cuts: it is dense in the numbering of its own configuration.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or manifest, configuration and weights do not fit one another.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    _FOLDERS.check_weights(folder, manifest)
    if manifest.get("plain"):
        kind = class_of(read_json(folder / CONFIG), folder / CONFIG)
        return Network(load_pretrained(kind, folder), ())
    return rebuild(build_dense(folder), folder, manifest)


def build_dense(folder: str | os.PathLike[str]) -> nn.Module:
    """The model of the folder's configuration on the meta device, before anything was cut, in evaluation mode.

    Raises:
        FileNotFoundError: the folder has no configuration.
        ValueError: it describes no model of transformers.
    """
    path = Path(folder) / CONFIG
    fields = read_json(path)
    return built(class_of(fields, path), fields, path)


def built(kind: Any, fields: Mapping[str, Any], where: Path | str) -> nn.Module:
    """A model of that class and configuration on the meta device, in evaluation mode.

    Raises:
        ValueError: none can be built from it.
    """
    try:
        with torch.device("meta"):
            model: nn.Module = kind(kind.config_class.from_dict(dict(fields)))
    except Exception as error:  # transformers validates with errors of its own
        raise ValueError(f"{where}: no {kind.__name__} can be built from it ({error})") from error
    return model.eval()


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a pruned network: format, class, recipe, metrics, hashes, cuts.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it is damaged or of another version.
    """
    return _FOLDERS.read_manifest(folder)


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """Read what was saved: the pruned model, in evaluation mode; folders of plain transformers load too.

    Raises:
        FileNotFoundError: there is no such folder, or a file is missing.
        ValueError: as for `load_network`, or the weights are not all those that the configuration needs.
    """
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return load_network(folder).module
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: no folder of a vision transformer: it has no {CONFIG}")
    return load_pretrained(class_of(read_json(folder / CONFIG), folder / CONFIG), folder)


def class_of(fields: Mapping[str, Any], where: Path | str, architecture: str | None = None) -> Any:
    """The class of transformers that a configuration names. No code of a folder or repository is ever run.

    Args:
        fields: of the configuration.
        where: it is from, for messages.
        architecture: a class to take instead of that in `architectures`.

    Raises:
        ValueError: transformers has no such model.
    """
    import transformers

    named = fields.get("architectures")
    name = architecture or (named[0] if isinstance(named, list) and named else None)
    if name is None:
        raise ValueError(f"{where}: no architectures, so nothing says which model of transformers this is")
    found = getattr(transformers, str(name), None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise ValueError(f"{where}: transformers has no model {name!r}")
    return found


def load_pretrained(kind: Any, source: str | os.PathLike[str], **options: Any) -> nn.Module:
    """A model of that class with all its weights from safetensors, in evaluation mode.

    Args:
        kind: the class of transformers.
        source: a folder, or a repository of the hub.
        options: of its `from_pretrained`, such as `revision` and `dtype`.

    Raises:
        FileNotFoundError: there are no safetensors.
        ValueError: weights are missing or of another shape: transformers would start them at random.
    """
    common: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    # So that the first weight that does not fit can be named: it is an error below.
    common["ignore_mismatched_sizes"] = True
    try:
        model, info = kind.from_pretrained(source, **common, **options)
    except OSError as error:
        raise FileNotFoundError(f"{source}: no weights could be read ({_first_line(error)})") from error
    wrong = sorted(f"{name!r} is missing" for name in info["missing_keys"])
    wrong += sorted(
        f"{name!r} has shape {tuple(held)}, not {tuple(own)}" for name, held, own in info["mismatched_keys"]
    )
    if wrong:
        raise ValueError(f"{source}: the weights are not those of this {kind.__name__}: {wrong[0]}")
    return model.eval()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
