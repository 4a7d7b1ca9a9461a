"""Finding a diffusion model: a folder, a demo model, a repository of the hub, or a configuration and random weights.

Only safetensors are read. Weights that do not fit the configuration are an error, never filled up with random ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion import architectures
from diffusion.architectures import COMPONENTS, Architecture, read_architecture, reason
from diffusion.demo import MODELS
from diffusion.prompting import Prompting, prompting_alone, prompting_of
from diffusion.saving import MODEL_INDEX, PrunedPipeline, load_network, read_manifest
from diffusion.weights import from_pretrained, load_pretrained
from secateur.surgery.cut import Cuts, cut_module
from secateur.surgery.manifest import cuts_from_json, hash_weights
from secateur.surgery.model_folder import CONFIG, MANIFEST
from secateur.training.seeding import seeded

PUBLISHED: Mapping[str, Architecture] = {
    "CompVis/stable-diffusion-v1-4": architectures.SD_1_5,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": architectures.SD_1_5,
    "stabilityai/stable-diffusion-2-1": architectures.SD_2_1,
    "stabilityai/stable-diffusion-xl-base-1.0": architectures.SDXL,
    "stabilityai/stable-diffusion-3-medium-diffusers": architectures.SD_3_MEDIUM,
    "facebook/DiT-XL-2-256": architectures.DIT_XL_2,
    "black-forest-labs/FLUX.1-dev": architectures.FLUX_DEV,
    "black-forest-labs/FLUX.1-schnell": architectures.FLUX_SCHNELL,
}
"""Repositories whose network can be planned without a download."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A denoising network, and what it takes to make pictures.

    Args:
        name: of the model, for people.
        component: what its pipeline calls it.
        network: of diffusers.
        scheduler: of diffusers.
        prompting: what it is told, and how latents become pictures.
        pipeline: what it is a part of; None where it came alone.
        cuts: what was cut from it before; None: nothing.
    """

    name: str
    component: str
    network: nn.Module
    scheduler: Any
    prompting: Prompting
    pipeline: Any = None
    cuts: Cuts | None = None

    def hashes(self) -> dict[str, str]:
        """Part -> SHA-256 of its weights, of the scheduler's settings; about a second for 2 GB.

        Taken of what was loaded, not of files: it is then the same whether the model lies in a folder or in the hub's
        cache, in one file or in several, and says which variant and dtype were taken.
        """
        parts = {self.component: self.network}
        if self.pipeline is not None:
            parts |= {name: part for name, part in self.pipeline.components.items() if isinstance(part, nn.Module)}
        settings = json.dumps(dict(self.scheduler.config), sort_keys=True, default=str)
        found = {name: hash_weights(part) for name, part in parts.items()}
        return found | {"scheduler": hashlib.sha256(settings.encode()).hexdigest()}


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is.

    Args:
        id: as the recipe has it.
        folder: where it lies; None: in a repository.
        component: folder of the denoising part; "" where the folder is that part.
        architecture: its configuration.
    """

    id: str
    folder: Path | None
    component: str
    architecture: Architecture

    @property
    def manifest(self) -> Path | None:
        """Of what was cut from the network before; None where it is dense."""
        if self.folder is None or self.folder.is_file():
            return None
        path = self.folder / self.component / MANIFEST
        return path if path.is_file() else None

    def on_meta(self) -> nn.Module:
        """The network as it is, without its weights.

        Raises:
            ValueError: none can be built from configuration and manifest.
        """
        network = self.architecture.build("meta")
        path = self.manifest
        manifest = {} if path is None else read_manifest(path.parent)
        if path is None or manifest.get("plain"):  # dense in the numbering of its own configuration
            return network
        cuts = cuts_from_json(manifest, network, path)
        return cut_module(network, cuts).eval()


def find(id: str, component: str | None = None, revision: str | None = None) -> Source:
    """Look a model up, without its weights; of repositories in `PUBLISHED`, without a download.

    Raises:
        FileNotFoundError: there is no such folder, or nothing can be downloaded.
        ValueError: it has no denoising part, or not the one that is asked for.
    """
    folder = next((path for path in (Path(id), MODELS / id) if path.exists()), None)
    if folder is None:
        if "/" not in id:
            raise FileNotFoundError(f"{id}: no folder, and none of the demo models {sorted(_demo_models())}")
        if id in PUBLISHED:
            kind = PUBLISHED[id].kind
            return Source(id, None, component or ("unet" if kind.startswith("UNet") else "transformer"), PUBLISHED[id])
        return _find_repository(id, component, revision)
    if folder.is_file():
        return Source(id, folder, "", _denoiser(folder))
    if not (folder / MODEL_INDEX).is_file():
        if component is not None and (folder / component / CONFIG).is_file():
            return Source(id, folder, component, _denoiser(folder / component / CONFIG))
        return Source(id, folder, "", _denoiser(folder / CONFIG))
    wanted = COMPONENTS if component is None else (component,)
    found = [name for name in wanted if (folder / name / CONFIG).is_file()]
    if not found:
        parts = sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG).is_file())
        raise ValueError(f"{folder}: no component {' or '.join(wanted)} with a {CONFIG}; it has {parts}")
    return Source(id, folder, found[0], _denoiser(folder / found[0] / CONFIG))


def load_model(
    id: str,
    component: str | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    random_weights: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LoadedModel:
    """Load a model with its pipeline, if it has one.

    Args:
        id: see `find`.
        component: which part of a pipeline denoises; None: the one that it has.
        revision: of a repository.
        variant: of the weights' files.
        random_weights: take the configuration alone; the weights are random, of seed 0.
        dtype: of the weights.
        device: where to.

    Raises:
        FileNotFoundError: as for `find`.
        ValueError: as for `find`; there are no safetensors, or the weights do not fit the configuration.
    """
    source = find(id, component, revision)
    if random_weights:
        return _random(source, dtype, device)
    if source.folder is not None and source.folder.is_file():
        raise ValueError(f"{source.folder}: a configuration has no weights; set random_weights to take random ones")
    try:
        with _without_bars():
            return _loaded(source, revision, variant, dtype, device)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{source.folder or id}: cannot be loaded: {reason(error)}") from error


def _loaded(
    source: Source, revision: str | None, variant: str | None, dtype: torch.dtype, device: torch.device | str
) -> LoadedModel:
    import diffusers

    of_hub = {"revision": revision, "use_safetensors": True}
    common: dict[str, Any] = {"variant": variant, "dtype": dtype}
    folder = source.folder or Path(diffusers.DiffusionPipeline.download(source.id, variant=variant, **of_hub))
    cuts = None
    if source.manifest is not None:
        pruned = load_network(source.manifest.parent)
        cuts, network = pruned.cuts, pruned.module
        # To the dtype that it has already, diffusers would say what may go wrong.
        network = network if next(network.parameters()).dtype == dtype else network.to(dtype)
    else:
        network = load_pretrained(folder / source.component, **common)
    if not (folder / MODEL_INDEX).is_file():
        return _alone(source, network.to(device), cuts)
    common[source.component] = network
    if source.folder is None:
        pipeline = from_pretrained(diffusers.DiffusionPipeline, source.id, **of_hub, **common)
    else:
        pipeline = PrunedPipeline.from_pretrained(folder, **common)
    pipeline = pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    network = getattr(pipeline, source.component).eval()
    return LoadedModel(source.id, source.component, network, pipeline.scheduler, prompting_of(pipeline), pipeline, cuts)


@contextmanager
def _without_bars() -> Iterator[None]:
    """While the context is open, diffusers shows no bars of its own."""
    from diffusers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _random(source: Source, dtype: torch.dtype, device: torch.device | str) -> LoadedModel:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)  # built in float32 first, a large network would take its memory twice
        with seeded(0, torch.device("cpu")):
            network = source.architecture.build("cpu")
    finally:
        torch.set_default_dtype(before)
    return _alone(source, network.to(dtype).to(device))


def _alone(source: Source, network: nn.Module, cuts: Cuts | None = None) -> LoadedModel:
    """A network without a pipeline, with the scheduler that most of its kind are trained for."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    kind = source.architecture.kind
    flows = any(name in kind for name in ("SD3", "Flux"))
    scheduler = (
        FlowMatchEulerDiscreteScheduler()
        if flows
        else DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    )
    prompting = prompting_alone(network, source.architecture.text_tokens or 77)
    component = source.component or ("unet" if kind.startswith("UNet") else "transformer")
    return LoadedModel(source.id, component, network, scheduler, prompting, cuts=cuts)


def _denoiser(path: Path) -> Architecture:
    """The network that a configuration describes, which has to take a time step."""
    import diffusers

    found = read_architecture(path)
    if "timestep" not in signature(getattr(diffusers, found.kind).forward).parameters:
        raise ValueError(f"{path}: no denoising network can be built from it (_class_name is {found.kind!r})")
    return found


def _find_repository(id: str, component: str | None, revision: str | None) -> Source:
    """The configuration of a repository's denoising part: a small download."""
    from huggingface_hub import hf_hub_download

    reasons = []
    for name in COMPONENTS if component is None else (component,):
        try:
            path = Path(hf_hub_download(id, f"{name}/{CONFIG}", revision=revision))
            return Source(id, None, name, _denoiser(path))
        except Exception as error:
            reasons.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise FileNotFoundError(f"{id}: no folder, and no repository that could be read ({'; '.join(reasons)})")


def _demo_models() -> list[str]:
    return [entry.name for entry in MODELS.iterdir() if entry.is_dir()] if MODELS.is_dir() else []
