"""Folders of pruned models of a library: its configuration, the weights, and a manifest of every cut.

The weights have a name of their own: under the library's name, `from_pretrained(..., ignore_mismatched_sizes=True)`
would load such a folder and silently start every pruned layer anew. A cut that the configuration can express is written
under the library's names, and loads without this package. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from secateur.files import replacing_folder
from secateur.surgery.cut import cut_module
from secateur.surgery.layers import named_tensors
from secateur.surgery.manifest import cuts_from_json, cuts_to_json, fill, hash_file, hash_weights
from secateur.surgery.network import Network
from secateur.surgery.plain import Plain

CONFIG = "config.json"
MANIFEST = "prune_manifest.json"
WEIGHTS = "pruned_model.safetensors"
_VERSION = 1
_LARGEST = 256 * 10**6


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The form of a library's folders.

    Args:
        kind: what is in them, such as "diffusion model".
        plain_weights: the library's own name for weights.
    """

    kind: str
    plain_weights: str

    @property
    def format(self) -> str:
        """What a manifest calls itself."""
        return f"secateur pruned {self.kind}"

    def write(
        self,
        network: Network,
        folder: str | os.PathLike[str],
        write_config: Callable[[Path], object],
        *,
        plain: Plain | None = None,
        dense: nn.Module | None = None,
        recipe: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a pruned network.

        Args:
            network: with its history of cuts.
            folder: where to; other files in it stay, but for weights of a former version.
            write_config: writes the dense model's configuration, or the plain model's, into a folder.
            plain: the network as the library can build it; None: it cannot.
            dense: the model that it was cut from; the manifest then holds the hash of its weights.
            recipe: how it was made; anything that JSON can hold.
            metrics: what it was measured to be; likewise.

        Raises:
            ValueError: the network holds meta tensors, or recipe or metrics are no JSON.
        """
        if any(tensor.is_meta for tensor in named_tensors(network.module).values()):
            raise ValueError("the network is on the meta device, so there are no weights to save")
        tensors = named_tensors(network.module) if plain is None else plain.model.state_dict()
        weights = WEIGHTS if plain is None else self.plain_weights
        fields: dict[str, Any] = {"recipe": recipe, "metrics": metrics}
        fields |= {"dense_sha256": None if dense is None else hash_weights(dense), **cuts_to_json(network)}
        if plain is not None:
            fields |= {"plain": True, "renamed": dict(plain.renamed)}
        try:
            with replacing_folder(folder, index=MANIFEST, former=(WEIGHTS, self.plain_weights)) as temporary:
                contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
                save_file(contiguous, temporary / weights, {"format": "pt"})
                write_config(temporary)
                manifest: dict[str, Any] = {"format": self.format, "version": _VERSION}
                manifest |= {"class": type(network.module).__name__, "weights": weights}
                manifest |= {"weights_sha256": hash_file(temporary / weights), **fields}
                (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        except TypeError as error:
            raise ValueError(f"the recipe or the metrics are no JSON: {error}") from error

    def read_manifest(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """The manifest of a pruned network: format, class, recipe, metrics, hashes, cuts.

        Raises:
            FileNotFoundError: the folder has none.
            ValueError: it is damaged, of another version, or of another kind of model.
        """
        path = Path(folder) / MANIFEST
        manifest = read_json(path)
        if manifest.get("format") != self.format:
            raise ValueError(f"{path}: not a manifest of a pruned {self.kind} (format must be {self.format!r})")
        if manifest.get("version") != _VERSION:
            raise ValueError(f"{path}: version {manifest.get('version')!r} is unknown; this reads version {_VERSION}")
        return manifest

    def check_weights(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Raise FileNotFoundError or ValueError unless the folder's weights are those of the manifest."""
        weights = folder / (self.plain_weights if manifest.get("plain") else WEIGHTS)
        if not weights.is_file():
            raise FileNotFoundError(f"{weights}: no such file")
        if hash_file(weights) != manifest.get("weights_sha256"):
            raise ValueError(f"{weights}: damaged, or not the weights that {MANIFEST} is of (weights_sha256)")


def rebuild(dense: nn.Module, folder: Path, manifest: Mapping[str, Any]) -> Network:
    """The pruned network of a folder, in evaluation mode, with its cuts but without groups.

    Args:
        dense: the network before the cuts, on the meta device.
        folder: which holds the weights.
        manifest: of the folder.

    Raises:
        ValueError: the first thing in which manifest, network and weights do not fit one another.
    """
    cuts = cuts_from_json(manifest, dense, folder / MANIFEST)
    module = cut_module(dense, cuts)
    fill(module, folder / WEIGHTS)
    return Network(module.eval(), (), cuts=cuts)


def refuse_mismatched(options: Mapping[str, Any]) -> None:
    """Raise ValueError for the option of `from_pretrained` that starts layers anew whose sizes do not fit."""
    if options.get("ignore_mismatched_sizes"):
        raise ValueError(
            "ignore_mismatched_sizes would replace every pruned layer by random weights of the dense size; "
            "leave it out: the manifest says what size the layers have"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is too large, no JSON, or holds no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are more than such a file has ({_LARGEST})")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold an object, found {type(value).__name__}")
    return value
