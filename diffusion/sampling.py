"""Which samples an evaluation takes, the same of every model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float, Int64
from torch import Tensor

from diffusion.scores import LatentSource


class Classifier(Protocol):
    """Says what a picture shows."""

    @property
    def classes(self) -> Sequence[str]: ...

    def classify(self, images: Float[Tensor, "N C H W"]) -> Int64[Tensor, " N"]: ...


def pictures_of(latents: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    """The pictures in [0, 1] of a model that works on pixels in [-1, 1]."""
    return (latents.float() / 2 + 0.5).clamp(0.0, 1.0)


@dataclass(frozen=True)
class PipelineSource:
    """The latents that a model makes in the place of a pipeline's network.

    Args:
        pipeline: `diffusion.pipeline.ClassToImage` or `TextToImage`.
        asked: the class or prompt of each seed.
        steps: time steps of the sampler.
        guidance: of classifier-free guidance; 1: none.
    """

    pipeline: Any
    asked: Mapping[int, Any]
    steps: int = 20
    guidance: float = 1.0

    def __call__(self, target: Any, seeds: Sequence[int], /) -> Float[Tensor, "seeds C H W"]:
        """The final latents of `target`, a diffusers network."""
        from diffusion.pipeline import sample_latents  # diffusers takes seconds to import

        noise = self.pipeline.noise(seeds).to(next(target.parameters()))
        conditions = self.pipeline.conditions([self.asked[seed] for seed in seeds])
        null = None if self.guidance == 1.0 else self.pipeline.null_conditions(len(seeds))
        how: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "null": null}
        return sample_latents(target, self.pipeline.scheduler, noise, seeds, conditions, **how)


@dataclass(frozen=True)
class Sampling:
    """Which samples every model makes.

    Args:
        sample: `sample(model, seeds)` makes the final latents; a seed's noise and prompt are the same for every model.
        seeds: one a sample, all different.
        labels: the class that each seed's condition asks for; None: unconditional, or conditions that are no classes.
        decode: latents -> pictures in [0, 1]; the autoencoder's decoder where there is one.
        batch_size: samples at a time.

    Raises:
        ValueError: no seeds, seeds that repeat, as many labels as there are not seeds, or no batch size.
    """

    sample: LatentSource
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None = None
    decode: Callable[[Tensor], Tensor] = pictures_of
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"an evaluation needs different seeds, at least one, got {len(self.seeds)} with repeats")
        if self.labels is not None and len(self.labels) != len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds and {len(self.labels)} labels: each seed needs its own")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
