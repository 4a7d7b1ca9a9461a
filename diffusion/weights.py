"""Weights of diffusers' folders: from safetensors alone, and none unless all of them fit the configuration.

Left to itself, `from_pretrained` reads pickles where there are no safetensors, drops tensors that the network lacks,
and leaves those that the files lack without values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from diffusion.architectures import read_architecture, reason, without_warnings
from secateur.surgery.model_folder import CONFIG, MANIFEST, WEIGHTS, read_json

PLAIN_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_pretrained(folder: Path, variant: str | None = None, **options: Any) -> nn.Module:
    """A network with all its weights, in evaluation mode; `options` are those of its `from_pretrained`.

    Raises:
        FileNotFoundError, ValueError: as for `check_weights`.
    """
    kind = type(check_weights(folder, variant))
    with without_warnings():
        network: nn.Module = from_pretrained(kind, folder, variant=variant, **options)
    return network.eval()


def check_weights(folder: Path, variant: str | None = None) -> nn.Module:
    """The network of a folder's configuration on the meta device, if the safetensors beside it hold its tensors.

    Args:
        folder: of one network.
        variant: of the files, such as "fp16".

    Raises:
        FileNotFoundError: there are no safetensors of that variant.
        ValueError: a file is damaged; no network can be built; or tensors are missing, too many, or of other shapes.
    """
    network: Any = read_architecture(folder / CONFIG).build("meta")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    files = _files(folder, variant)
    held = {name: shape for path in files for name, shape in shapes(path).items()}
    if len(files) == 1:
        network._fix_state_dict_keys_on_load(held)  # names of old, which diffusers changes as it loads
    ignored = network._keys_to_ignore_on_load_unexpected or ()
    missing = [name for name in expected if name not in held]
    unexpected = [name for name in held if name not in expected and not any(re.search(p, name) for p in ignored)]
    others = [
        f"{name} is {held[name]}, not {shape}" for name, shape in expected.items() if held.get(name, shape) != shape
    ]
    found = {
        f"of its {len(expected)} tensors are missing": missing,
        "are unknown to it": unexpected,
        "have other shapes": others,
    }
    wrong = [f"{len(names)} {what} (first: {names[0]})" for what, names in found.items() if names]
    if wrong:
        kind = type(network).__name__
        raise ValueError(f"{folder}: the weights do not fit the {kind} of {CONFIG}: {', '.join(wrong)}")
    return network


def from_pretrained(kind: Any, source: str | os.PathLike[str], **options: Any) -> Any:
    """What a class of diffusers reads from a folder or repository, with its many errors as two.

    Raises:
        FileNotFoundError: a file is missing, or holds no safetensors.
        ValueError: a file does not hold what the class needs.
    """
    try:
        return kind.from_pretrained(source, **options | {"use_safetensors": True})
    except OSError as error:
        raise FileNotFoundError(
            f"{source}: not all weights could be read, and only safetensors are ({reason(error)})"
        ) from error
    except Exception as error:  # each class of diffusers and transformers stumbles in its own way over what files hold
        raise ValueError(f"{source}: no {kind.__name__} can be built from it ({reason(error)})") from error


def _files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors that diffusers would read."""
    stem, suffix = PLAIN_WEIGHTS.split(".")
    part = f".{variant}" if variant else ""
    for index in (f"{stem}.{suffix}.index{part}.json", f"{stem}.{suffix}{part}.index.json"):
        if (folder / index).is_file():
            return _shards(folder / index)
    path = folder / f"{stem}{part}.{suffix}"
    if path.is_file():
        return [path]
    if (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder}: no {MANIFEST}, without which its {WEIGHTS} cannot be read")
    raise FileNotFoundError(f"{path}: no such file; only safetensors are read, since pickles can run any code")


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError(f"{index}: weight_map must say which file holds which tensor")
    files = [index.parent / name for name in dict.fromkeys(names.values())]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]}: no such file, which {index.name} names")
    return files


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors in a safetensors file, from its header.

    Raises:
        ValueError: it is damaged: cut short, too.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, or no safetensors at all ({error})") from error
