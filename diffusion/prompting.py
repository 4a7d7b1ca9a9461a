"""What each family of models is told of a prompt, what its latents are, and how they become pictures."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.inputs import example_inputs, latent_size
from diffusion.sampling import pictures_of
from secateur.training import generator_at

Rows = dict[str, Any]
"""Arguments of a network by name: tensors with a row a sample, or mappings of them."""


class Prompting(ABC):
    """The side of a model that its network does not see to.

    Attributes:
        network: what denoises.
        timestep_scale: of what the network is told; 0.001 where its time is 0 to 1.
    """

    timestep_scale: float = 1.0

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @abstractmethod
    def conditions(self, asked: Sequence[str]) -> Rows:
        """Arguments for these prompts, or class labels as text, a row each.

        Raises:
            ValueError: the model knows no such class.
        """

    def null(self) -> Rows | None:
        """Arguments, a single row, for "no prompt"; None where the model has none."""
        return self.conditions([""])

    def default(self) -> Sequence[str]:
        """What is asked for where a recipe says nothing.

        Raises:
            ValueError: that cannot be told for a model of prompts.
        """
        raise ValueError("this model draws from prompts, and none are given")

    def shared(self, size: int | None) -> Rows:
        """Further arguments, the same for all samples, for latents of this height and width (None: the model's own)."""
        return {}

    def shape(self, size: int | None) -> tuple[int, ...]:
        """Of one sample's latents."""
        config: Any = self.network.config
        return config.in_channels, *latent_size(config, size)

    def timestep_options(self, scheduler: Any, steps: int, size: int | None) -> dict[str, Any]:
        """What the pipeline tells its scheduler's `set_timesteps` beside the number of steps."""
        return {}

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N ..."]:
        """Clean latents of pictures in [0, 1], float32.

        Raises:
            ValueError: the model has no autoencoder.
        """
        raise ValueError("pictures need a pipeline with an autoencoder")

    def size(self, latents: Float[Tensor, "N ..."]) -> int:
        """Of latents, as `shared` and `shape` take it."""
        return latents.shape[-1]

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        """Pictures in [0, 1]: grey or RGB ones, or the first three channels of latents that nothing decodes."""
        pictures = pictures_of(latents)
        return pictures if pictures.shape[1] in (1, 3) else pictures[:, :3]


class Classes(Prompting):
    """A network that is told a class, such as DiT; the last of its classes stands for none."""

    @property
    def classes(self) -> int:
        """How many real classes there are."""
        config: Any = self.network.config
        labels = config.get("num_embeds_ada_norm")
        return int(config.num_class_embeds - 1 if labels is None else labels)

    def conditions(self, asked: Sequence[str]) -> Rows:
        labels = [self._label(text) for text in asked]
        return {"class_labels": torch.tensor(labels, dtype=torch.int64)}

    def default(self) -> Sequence[str]:
        """Every class."""
        return [str(label) for label in range(self.classes)]

    def _label(self, text: str) -> int:
        if not text:
            return self.classes
        if not text.isdecimal() or int(text) >= self.classes:
            raise ValueError(f"{text!r} is no class: they are 0 to {self.classes - 1}")
        return int(text)


class Encoded(Prompting):
    """A pipeline of ours, which encodes prompts by itself."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.network)
        self.pipeline = pipeline

    def conditions(self, asked: Sequence[str]) -> Rows:
        return dict(self.pipeline.conditions(list(asked)))


class MadeUp(Prompting):
    """A network alone: nothing encodes prompts, so each becomes random numbers of its own.

    That tells what a network costs, and whether a recipe runs; what scores are worth, it does not.
    """

    def __init__(self, network: nn.Module, text_tokens: int = 77) -> None:
        super().__init__(network)
        self.text_tokens = text_tokens
        self.timestep_scale = 0.001 if "img_ids" in signature(network.forward).parameters else 1.0

    def conditions(self, asked: Sequence[str]) -> Rows:
        inputs = example_inputs(self.network, size=1, text_tokens=self.text_tokens)
        kept = [name for name in inputs if name not in self._shared_names()]
        return {name: _filled(inputs[name], asked) for name in kept}

    def default(self) -> Sequence[str]:
        """Numbers, which will do as well as words."""
        return [str(number) for number in range(16)]

    def shared(self, size: int | None) -> Rows:
        inputs = example_inputs(self.network, size=size, text_tokens=self.text_tokens)
        names = [name for name in ("img_ids", "txt_ids") if name in inputs]
        return {name: _cpu(inputs[name]) for name in names} | _without_tensors(inputs)

    def timestep_options(self, scheduler: Any, steps: int, size: int | None) -> dict[str, Any]:
        packed = "img_ids" in signature(self.network.forward).parameters
        return _packed_timesteps(scheduler, steps, self.shape(size)[0]) if packed else {}

    def shape(self, size: int | None) -> tuple[int, ...]:
        inputs = example_inputs(self.network, size=size, text_tokens=self.text_tokens)
        return tuple(next(iter(inputs.values())).shape[1:])

    def _shared_names(self) -> set[str]:
        inputs = example_inputs(self.network, size=1, text_tokens=self.text_tokens)
        return {next(iter(inputs)), "timestep", "img_ids", "txt_ids", *_without_tensors(inputs)}


class StableDiffusion(Prompting):
    """Stable Diffusion 1, 2 and XL: prompts through CLIP, latents through an autoencoder."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.unet)
        self.pipeline = pipeline

    @torch.no_grad()
    def conditions(self, asked: Sequence[str]) -> Rows:
        encoded = self.pipeline.encode_prompt(
            list(asked), device=self.pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if getattr(self.pipeline, "text_encoder_2", None) is None:
            return {"encoder_hidden_states": encoded[0]}
        side = float(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)
        times = torch.tensor([[side, side, 0.0, 0.0, side, side]]).expand(len(asked), 6)
        added = {"text_embeds": encoded[2], "time_ids": times.to(encoded[2])}
        return {"encoder_hidden_states": encoded[0], "added_cond_kwargs": added}

    def null(self) -> Rows | None:
        """The empty prompt; zeros where the pipeline says so, as SDXL's does."""
        rows = self.conditions([""])
        if self.pipeline.config.get("force_zeros_for_empty_prompt"):
            rows["encoder_hidden_states"] = torch.zeros_like(rows["encoder_hidden_states"])
            added = rows["added_cond_kwargs"]
            rows["added_cond_kwargs"] = {**added, "text_embeds": torch.zeros_like(added["text_embeds"])}
        return rows

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N ..."]:
        return encoded_by(self.pipeline.vae, pictures)

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        return decoded_by(self.pipeline.vae, latents)


class StableDiffusion3(StableDiffusion):
    """Stable Diffusion 3: prompts through two CLIPs and T5."""

    def __init__(self, pipeline: Any) -> None:
        Prompting.__init__(self, pipeline.transformer)
        self.pipeline = pipeline

    @torch.no_grad()
    def conditions(self, asked: Sequence[str]) -> Rows:
        prompts = list(asked)
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, prompts, prompts, device=self.pipeline.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}


class PixArt(StableDiffusion3):
    """PixArt: prompts through T5, with a mask of their tokens; the largest model is told the picture's size, too."""

    @torch.no_grad()
    def conditions(self, asked: Sequence[str]) -> Rows:
        states, mask, _, _ = self.pipeline.encode_prompt(
            list(asked), do_classifier_free_guidance=False, device=self.pipeline.device
        )
        rows: Rows = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        if self.network.use_additional_conditions:
            config: Any = self.network.config
            side = torch.full((len(asked), 2), float(config.sample_size * self.pipeline.vae_scale_factor)).to(states)
            rows["added_cond_kwargs"] = {"resolution": side, "aspect_ratio": torch.ones_like(side[:, :1])}
        return rows

    def shared(self, size: int | None) -> Rows:
        return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


class Flux(StableDiffusion3):
    """FLUX.1: prompts through CLIP and T5, latents of 2x2 patches as tokens; guidance is an input of the dev model.

    Args:
        pipeline: of diffusers.
        guidance: what the dev model is told.
    """

    timestep_scale = 0.001

    def __init__(self, pipeline: Any, guidance: float = 3.5) -> None:
        super().__init__(pipeline)
        self.guidance = guidance
        config: Any = self.network.config
        self.dev = bool(config.get("guidance_embeds"))
        self.text_tokens = 512 if self.dev else 256  # as the model cards have it

    @torch.no_grad()
    def conditions(self, asked: Sequence[str]) -> Rows:
        states, pooled, _ = self.pipeline.encode_prompt(
            list(asked), list(asked), device=self.pipeline.device, max_sequence_length=self.text_tokens
        )
        rows: Rows = {"encoder_hidden_states": states, "pooled_projections": pooled}
        if self.dev:
            rows["guidance"] = torch.full((len(asked),), self.guidance)
        return rows

    def null(self) -> Rows | None:
        return None

    def shared(self, size: int | None) -> Rows:
        side = self._side(size)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
        return {"img_ids": places.float(), "txt_ids": torch.zeros(self.text_tokens, 3)}

    def shape(self, size: int | None) -> tuple[int, ...]:
        config: Any = self.network.config
        return self._side(size) ** 2, config.in_channels

    def timestep_options(self, scheduler: Any, steps: int, size: int | None) -> dict[str, Any]:
        return _packed_timesteps(scheduler, steps, self._side(size) ** 2)

    def size(self, latents: Float[Tensor, "N tokens C"]) -> int:
        """Patches along a side."""
        return round(latents.shape[1] ** 0.5)

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N tokens C"]:
        plain = super().encode(pictures)
        count, channels, height, width = plain.shape
        patches = plain.reshape(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(count, -1, 4 * channels)

    def decode(self, latents: Float[Tensor, "N tokens C"]) -> Float[Tensor, "N C2 H2 W2"]:
        count, _, channels = latents.shape
        side = self.size(latents)
        patches = latents.reshape(count, side, side, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return decoded_by(self.pipeline.vae, patches.reshape(count, channels // 4, 2 * side, 2 * side))

    def _side(self, size: int | None) -> int:
        """Patches along a side."""
        return size or int(self.pipeline.default_sample_size) // 2


class LatentClasses(Classes):
    """DiT on latents: classes, and an autoencoder."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.transformer)
        self.pipeline = pipeline

    def encode(self, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N ..."]:
        return encoded_by(self.pipeline.vae, pictures)

    def decode(self, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C2 H2 W2"]:
        return decoded_by(self.pipeline.vae, latents)


@torch.no_grad()
def decoded_by(vae: Any, latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N 3 H2 W2"]:
    """Pictures in [0, 1] of an autoencoder's scaled latents."""
    weight = next(vae.parameters())
    plain = latents.to(weight) / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return pictures_of(vae.decode(plain, return_dict=False)[0])


@torch.no_grad()
def encoded_by(vae: Any, pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C H2 W2"]:
    """Scaled latents of pictures in [0, 1]: the mean of what the autoencoder makes of them."""
    weight = next(vae.parameters())
    plain = vae.encode((2 * pictures - 1).to(weight)).latent_dist.mode()
    return ((plain - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor).float()


def prompting_of(pipeline: Any) -> Prompting:
    """What fits a pipeline, found by what it is made of.

    Raises:
        ValueError: nothing does.
    """
    parts = pipeline.components
    if "vae" not in parts:
        by_class = hasattr(pipeline, "classes")
        return Classes(pipeline.network) if by_class else Encoded(pipeline)
    if "unet" in parts and hasattr(pipeline, "encode_prompt"):
        return StableDiffusion(pipeline)
    if "transformer" in parts and not hasattr(pipeline, "encode_prompt"):
        return LatentClasses(pipeline)
    if "transformer" in parts:
        names = signature(pipeline.transformer.forward).parameters
        if "img_ids" in names:
            return Flux(pipeline)
        return StableDiffusion3(pipeline) if "pooled_projections" in names else PixArt(pipeline)
    raise ValueError(f"{type(pipeline).__name__} is no pipeline from prompts or classes: it has {sorted(parts)}")


def prompting_alone(network: nn.Module, text_tokens: int = 77) -> Prompting:
    """What fits a network without a pipeline."""
    inputs = example_inputs(network, size=1)
    return Classes(network) if "class_labels" in inputs else MadeUp(network, text_tokens)


def _packed_timesteps(scheduler: Any, steps: int, tokens: int) -> dict[str, Any]:
    """Levels of noise from 1 to 1 / steps, as FLUX.1's pipeline has them, moved by how many tokens there are."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    options: dict[str, Any] = {}
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        options["sigmas"] = [1 - step / steps for step in range(steps)]
    if scheduler.config.get("use_dynamic_shifting"):
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        options["mu"] = calculate_shift(tokens, *(scheduler.config[name] for name in names))
    return options


def _filled(value: Any, asked: Sequence[str]) -> Any:
    """Standard normal rows, a row depending on its prompt alone."""
    if isinstance(value, Mapping):
        return {name: _filled(one, asked) for name, one in value.items() if _has_tensor(one)}
    drawn = [torch.randn(value.shape[1:], generator=generator_at(_seed(text), 0)) for text in asked]
    return torch.stack(drawn)


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _has_tensor(value: Any) -> bool:
    return any(map(_has_tensor, value.values())) if isinstance(value, Mapping) else isinstance(value, Tensor)


def _without_tensors(inputs: Mapping[str, Any]) -> Rows:
    return {name: value for name, value in inputs.items() if not _has_tensor(value)}


def _cpu(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape) if tensor.is_meta else tensor.cpu()
