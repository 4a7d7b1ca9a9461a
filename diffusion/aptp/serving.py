"""Pictures from experts: prompts are routed, and each expert makes those that are its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.aptp.captions import Encode
from diffusion.aptp.experts import Experts, load_experts
from secateur.training import generator_at


def sentence_embeddings(prompts: Sequence[str]) -> Float[Tensor, "N width"]:
    """Of the packaged sentence encoder."""
    from diffusion.text import sentence_encoder

    return sentence_encoder()(prompts).embeddings


class Routed:
    """A pipeline that is one of several experts for each prompt.

    All experts are held at once; they share the rest of the pipeline.

    Args:
        experts: the router and its networks.
        pipeline: of prompts: `diffusion.pipeline.TextToImage`, or one of diffusers; its network is replaced.
        component: what the pipeline calls its network.
        encode: what embeds prompts for the router.

    Raises:
        ValueError: the pipeline has no such component.
    """

    def __init__(
        self,
        experts: Experts,
        pipeline: Any,
        component: str = "unet",
        encode: Encode = sentence_embeddings,
    ) -> None:
        if component not in pipeline.components:
            raise ValueError(
                f"{type(pipeline).__name__} has no component {component!r}; it has {sorted(pipeline.components)}"
            )
        self.experts, self.pipeline, self.component, self.encode = experts, pipeline, component, encode

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], encode: Encode = sentence_embeddings) -> Routed:
        """What `diffusion.aptp.experts.save_experts` wrote.

        Raises:
            FileNotFoundError: the router or an expert is missing.
            ValueError: a file is damaged, or the experts are not those that the router was written with.
        """
        experts, pipeline, component = load_experts(folder)
        return cls(experts, pipeline, component, encode)

    def route(self, prompts: Sequence[str]) -> Int64[Tensor, " N"]:
        """Which expert makes each prompt's picture.

        Raises:
            ValueError: there are no prompts, a single string is given, or the router reads another encoder.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise ValueError(f"prompts must be a list of strings, and not empty, got {prompts!r}")
        return self.experts.router.route(self.encode(prompts))

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] | None = None,
        output_type: str = "pil",
        **options: Any,
    ) -> Any:
        """A picture a prompt, in the order of the prompts; each expert makes its own in one batch.

        Args:
            prompts: a list.
            seeds: one a picture; None: 0, 1, 2 ...
            output_type: "pil" gives a list of pictures, "pt" and "latent" tensors with a row each.
            options: further ones of the pipeline.

        Raises:
            ValueError: as for `route`; not as many seeds as prompts.
        """
        codes = self.route(prompts).tolist()
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        made: dict[int, Any] = {}
        for code in sorted(set(codes)):
            places = [place for place, each in enumerate(codes) if each == code]
            self.pipeline.register_modules(**{self.component: self.experts.networks[code].module})
            own = [prompts[place] for place in places]
            found = self._pictures(own, [seeds[place] for place in places], output_type=output_type, **options)
            made |= dict(zip(places, found, strict=True))
        images = [made[place] for place in range(len(prompts))]
        return torch.stack(images) if output_type in ("pt", "latent") else images

    def _pictures(self, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Any:
        """Ours take seeds; those of diffusers take generators, and give pictures with more around them."""
        if "seeds" in signature(self.pipeline.__call__).parameters:
            return self.pipeline(prompts, seeds=seeds, **options)
        return self.pipeline(list(prompts), generator=[generator_at(seed, 0) for seed in seeds], **options).images
