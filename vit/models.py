"""Finding a vision transformer: a folder, a repository of the hub, a configuration and random weights, any module.

Only safetensors are read, and no code of a folder or repository is run. Weights that do not fit the configuration are
an error, never filled up with random ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.surgery.cut import Cuts, cut_module
from secateur.surgery.manifest import cuts_from_json
from secateur.surgery.model_folder import CONFIG, MANIFEST, read_json
from secateur.training.seeding import seeded
from vit.images import PREPROCESSOR, ImagePreparation, read_preparation
from vit.inputs import image_shape
from vit.saving import built, class_of, load_network, load_pretrained, read_manifest

_VIT = {"architectures": ["ViTForImageClassification"], "num_labels": 1000}
_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}
_TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
_DINO = {"architectures": ["Dinov2Model"], "image_size": 518, "patch_size": 14}

PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "google/vit-base-patch16-224": _VIT,
    "WinKawaks/vit-small-patch16-224": {**_VIT, **_SMALL},
    "facebook/deit-tiny-patch16-224": {**_VIT, **_TINY},
    "facebook/deit-small-patch16-224": {**_VIT, **_SMALL},
    "facebook/deit-base-patch16-224": _VIT,
    "facebook/dinov2-small": {**_DINO, "hidden_size": 384, "num_attention_heads": 6},
    "facebook/dinov2-base": _DINO,
    "microsoft/swin-tiny-patch4-window7-224": {
        "architectures": ["SwinForImageClassification"],
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "num_labels": 1000,
    },
    "facebook/sam-vit-base": {"architectures": ["SamVisionModel"], "global_attn_indexes": [2, 5, 8, 11]},
}
"""Repositories whose network can be planned without a download: its configuration, but for names of classes."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A vision transformer, and how images are prepared for it.

    Args:
        name: of the model, for people.
        network: of transformers, or any module.
        cuts: what was cut from it before; None: nothing.
        preprocessor: the file that says how images are prepared; None: there is none.
    """

    name: str
    network: nn.Module
    cuts: Cuts | None = None
    preprocessor: Path | None = None

    def preparation(self) -> ImagePreparation:
        """How images are prepared: as the file says, or else resized to the configuration's size and centred on 0.5.

        Raises:
            ValueError: the file is damaged, or describes what is not done here; or neither says a size.
        """
        if self.preprocessor is not None:
            return read_preparation(self.preprocessor)
        channels, height, width = image_shape(self.network)
        return ImagePreparation((height, width), mean=(0.5,) * channels, std=(0.5,) * channels)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is.

    Args:
        id: as the recipe has it.
        folder: where it lies; None: in a repository.
        kind: its class, of transformers.
        fields: of its configuration.
    """

    id: str
    folder: Path | None
    kind: Any
    fields: Mapping[str, Any]

    @property
    def manifest(self) -> Path | None:
        """Of what was cut from the network before; None where it is dense in its own configuration."""
        path = None if self.folder is None else self.folder / MANIFEST
        if path is None or not path.is_file() or read_manifest(path.parent).get("plain"):
            return None
        return path

    def on_meta(self) -> nn.Module:
        """The network as it is, without its weights, in evaluation mode.

        Raises:
            ValueError: configuration and manifest describe no model, or not the same.
        """
        network = built(self.kind, self.fields, self.id)
        if self.manifest is None:
            return network
        cuts = cuts_from_json(read_manifest(self.manifest.parent), network, self.manifest)
        return cut_module(network, cuts).eval()


def find(id: str, *, architecture: str | None = None, revision: str | None = None) -> Source:
    """Look a model up, without its weights; of repositories in `PUBLISHED`, without a download.

    Args:
        id: a folder with a `config.json`, such a file alone, or a repository of the hub.
        architecture: the class of transformers; None: the one that the configuration names.
        revision: of a repository.

    Raises:
        FileNotFoundError: there is no such folder, or nothing can be downloaded.
        ValueError: it describes no model of transformers.
    """
    path = Path(id)
    if path.is_file():
        return _source(id, None, path, architecture)
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path}: no folder of a model of transformers: it has no {CONFIG}")
        return _source(id, path, path / CONFIG, architecture)
    if id in PUBLISHED:
        return Source(id, None, class_of(PUBLISHED[id], id, architecture), PUBLISHED[id])
    if "/" not in id:
        raise FileNotFoundError(f"{id}: no folder, and no repository, which would be owner/name")
    return _source(id, None, _downloaded(id, CONFIG, revision), architecture)


def _source(id: str, folder: Path | None, config: Path, architecture: str | None) -> Source:
    fields = read_json(config)
    kind = class_of(fields, config, architecture)
    # A configuration of several models (SAM's) holds that of its vision model.
    own = fields.get("vision_config")
    whole = fields.get("model_type") == kind.config_class.model_type or not isinstance(own, dict)
    return Source(id, folder, kind, fields if whole or own is None else own)


def load_model(
    source: str | Path | nn.Module,
    *,
    architecture: str | None = None,
    revision: str | None = None,
    random_weights: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a vision transformer, in evaluation mode.

    Args:
        source: see `find`; folders that `vit.save` wrote too. A module is taken as it is, where it is.
        architecture: the class of transformers, such as "SamVisionModel" of a whole SAM; None: the one that the
            configuration names.
        revision: of a repository.
        random_weights: take the configuration alone; the weights are random, of seed 0.
        dtype: of the weights.
        device: where to.

    Raises:
        FileNotFoundError: there is no such folder or file, or nothing can be downloaded.
        ValueError: the weights are not those that the configuration needs, or manifest and configuration do not fit.
    """
    if isinstance(source, nn.Module):
        return LoadedModel(type(source).__name__, source)
    found = find(str(source), architecture=architecture, revision=revision)
    if random_weights:
        return LoadedModel(found.id, _random(found).to(device, dtype), None, _preprocessor(found))
    if found.manifest is not None:
        pruned = load_network(found.manifest.parent)
        return LoadedModel(found.id, pruned.module.to(device, dtype), pruned.cuts, _preprocessor(found))
    if found.folder is None and Path(found.id).is_file():
        raise FileNotFoundError(f"{found.id}: a configuration has no weights; ask for random_weights")
    options: dict[str, Any] = {"dtype": dtype} | ({} if revision is None else {"revision": revision})
    network = load_pretrained(found.kind, found.folder or found.id, **options)
    return LoadedModel(found.id, network.to(device), None, _preprocessor(found, revision))


def _random(source: Source) -> nn.Module:
    if source.manifest is not None:
        raise ValueError(f"{source.id}: a pruned model has the weights that were left to it; load it with them")
    config = source.kind.config_class.from_dict(dict(source.fields))
    with seeded(0, torch.device("cpu")):
        return source.kind(config).eval()


def _preprocessor(source: Source, revision: str | None = None) -> Path | None:
    if source.folder is None:
        try:
            return None if Path(source.id).is_file() else _downloaded(source.id, PREPROCESSOR, revision)
        except FileNotFoundError:
            return None
    path = source.folder / PREPROCESSOR
    return path if path.is_file() else None


def _downloaded(id: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(id, name, revision=revision))
    except Exception as error:  # of the hub, of the network, of the name
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{id}: no folder, and no repository whose {name} could be read ({reason})") from error
