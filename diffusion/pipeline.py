"""Small diffusers pipelines: prompts or classes -> latents -> pictures, each sample from a seed of its own.

The folders are those of diffusers, so `UNet2DConditionModel.from_pretrained(folder / "unet")` reads the network alone.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from diffusion.inputs import latent_size
from diffusion.sampling import pictures_of
from diffusion.text import sentence_encoder
from diffusion.trajectory import Guided, Sampler
from secateur.training import generator_at
from secateur.training.weights import evaluating

Conditions = Mapping[str, Tensor]
"""Arguments of a network by name, a row a sample."""

OutputType = Literal["pil", "pt", "latent"]


def starting_noise(
    seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu"
) -> Float[Tensor, "N C H W"]:
    """Noise of which each sample depends on its own seed alone: batches of any size, of any network, are paired."""
    return torch.stack([torch.randn(*shape, generator=generator_at(seed, 0)) for seed in seeds]).to(device)


@torch.no_grad()
def sample_latents(
    network: nn.Module,
    scheduler: Any,
    noise: Float[Tensor, "N C H W"],
    seeds: Sequence[int],
    conditions: Conditions,
    *,
    steps: int,
    guidance: float = 1.0,
    null: Conditions | None = None,
) -> Float[Tensor, "N C H W"]:
    """Denoise, without gradients, in evaluation mode.

    Args:
        network: of diffusers.
        scheduler: of diffusers; it is not changed.
        noise: standard normal.
        seeds: one a sample: what a scheduler draws on the way depends on nothing else.
        conditions: of the samples.
        steps: time steps of the sampler.
        guidance: w in prediction(null) + w (prediction(conditions) - prediction(null)); 1: conditions alone.
        null: what the network is told when it is told nothing; needed unless `guidance` is 1.

    Raises:
        ValueError: guidance without `null`; latents that are not finite, with the step.
    """
    if guidance != 1.0 and null is None:
        raise ValueError(f"guidance {guidance} needs null, the conditions that tell nothing")
    with evaluating(network):
        return Sampler(scheduler, steps).sample(Guided(network, conditions, null, guidance), noise, seeds)


class _ImagePipeline(DiffusionPipeline):
    """Pictures are the latents: there is no autoencoder."""

    scheduler: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """The pipeline in a folder of diffusers; arguments are those of `DiffusionPipeline.from_pretrained`.

        It samples what the saved one did, bit for bit. Only safetensors are read.
        """
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs | {"use_safetensors": True})
        for tensor in chain(pipeline.network.parameters(), pipeline.network.buffers()):
            tensor.data = tensor.data.clone()  # mapped from a file it may lie where kernels round otherwise
        return pipeline

    @property
    def network(self) -> Any:
        """What denoises, whatever its folder is called."""
        return next(part for name in ("unet", "transformer") if (part := getattr(self, name, None)) is not None)

    @abstractmethod
    def conditions(self, asked: Sequence[Any]) -> dict[str, Tensor]:
        """Arguments of the network for what is asked, a row a sample."""

    @abstractmethod
    def null_conditions(self, count: int) -> dict[str, Tensor]:
        """Arguments of the network for `count` samples of whatever it likes."""

    def noise(self, seeds: Sequence[int]) -> Float[Tensor, "N C H W"]:
        """What samples of these seeds start from."""
        config = self.network.config
        return starting_noise(seeds, (config.in_channels, *latent_size(config)), self.device)

    def _generate(
        self, asked: Sequence[Any], seeds: Sequence[int] | None, steps: int, guidance: float, output_type: OutputType
    ) -> list[Image.Image] | Tensor:
        seeds = range(len(asked)) if seeds is None else seeds
        if len(seeds) != len(asked):
            raise ValueError(f"{len(asked)} samples need as many seeds, got {len(seeds)}")
        null = None if guidance == 1.0 else self.null_conditions(len(asked))
        latents = sample_latents(
            self.network,
            self.scheduler,
            self.noise(seeds).to(next(self.network.parameters()).dtype),
            seeds,
            self.conditions(asked),
            steps=steps,
            guidance=guidance,
            null=null,
        )
        return latents if output_type == "latent" else decoded(latents, output_type)


class TextToImage(_ImagePipeline):
    """Prompts -> pictures, through the packaged sentence encoder, which is no part of the folder.

    Args:
        unet: `UNet2DConditionModel` with cross-attention on the encoder's token states.
        scheduler: of diffusers.
    """

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def conditions(self, asked: Sequence[str]) -> dict[str, Tensor]:
        """`encoder_hidden_states` of prompts, (N, 16, 384)."""
        weight = next(self.network.parameters())
        return {"encoder_hidden_states": sentence_encoder()(asked).states.to(weight)}

    def null_conditions(self, count: int) -> dict[str, Tensor]:
        """Those of empty prompts."""
        return self.conditions([""] * count)

    def __call__(
        self,
        prompt: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        output_type: OutputType = "pil",
    ) -> list[Image.Image] | Tensor:
        """A picture a prompt.

        Args:
            prompt: the prompts, a list.
            seeds: one a picture; None: 0, 1, 2 ...
            num_inference_steps: time steps.
            guidance_scale: of classifier-free guidance; 1: none.
            output_type: "pil" grey pictures, "pt" (N, C, H, W) in [0, 1], or "latent", what the sampler ends with.
        """
        return self._generate(prompt, seeds, num_inference_steps, guidance_scale, output_type)


class ClassToImage(_ImagePipeline):
    """Classes -> pictures.

    Args:
        scheduler: of diffusers.
        unet: `UNet2DModel` with `num_class_embeds`, the last of which stands for "no class"; None: `transformer` is.
        transformer: `DiTTransformer2DModel`; None: `unet` is.

    Raises:
        ValueError: not one of the two is given.
    """

    _optional_components = ["unet", "transformer"]  # noqa: RUF012  read by diffusers

    def __init__(self, scheduler: Any, unet: Any = None, transformer: Any = None) -> None:
        super().__init__()
        if (unet is None) == (transformer is None):
            raise ValueError("give a unet or a transformer, and not both")
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer)

    @property
    def classes(self) -> int:
        """How many real classes there are; this number itself stands for none of them."""
        config = self.network.config
        labels = config.get("num_embeds_ada_norm")
        return int(config.num_class_embeds - 1 if labels is None else labels)

    def conditions(self, asked: Sequence[int]) -> dict[str, Tensor]:
        """`class_labels`, (N,).

        Raises:
            ValueError: there is no such class.
        """
        labels = torch.tensor(list(asked), dtype=torch.int64, device=self.device)
        if not len(labels) or int(labels.min()) < 0 or int(labels.max()) > self.classes:
            raise ValueError(f"classes are 0 to {self.classes - 1}, and {self.classes} for none, got {list(asked)}")
        return {"class_labels": labels}

    def null_conditions(self, count: int) -> dict[str, Tensor]:
        """The class that stands for none."""
        return self.conditions([self.classes] * count)

    def __call__(
        self,
        class_labels: Sequence[int],
        *,
        seeds: Sequence[int] | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 1.0,
        output_type: OutputType = "pil",
    ) -> list[Image.Image] | Tensor:
        """A picture a class; arguments as for `TextToImage`."""
        return self._generate(class_labels, seeds, num_inference_steps, guidance_scale, output_type)


def decoded(
    latents: Float[Tensor, "N C H W"], output_type: Literal["pil", "pt"] = "pil"
) -> list[Image.Image] | Float[Tensor, "N C H W"]:
    """Pictures of latents that are pixels in [-1, 1]: (N, C, H, W) in [0, 1], or 8-bit grey or RGB ones of Pillow."""
    images = pictures_of(latents)
    if output_type == "pt":
        return images
    levels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(level[..., 0] if level.shape[-1] == 1 else level) for level in levels]
