"""The demo models that are pruned, with the data, the judge and the units of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from diffusion import demo
from diffusion.conditions import ClassLabels, ClassPrompts, Conditions, LatentBatches
from diffusion.demo.prompts import plain_prompts, training_prompts
from diffusion.denoiser import Denoiser
from diffusion.inputs import example_inputs
from diffusion.noising import Noising
from diffusion.sampling import PipelineSource, Sampling
from diffusion.scores import LatentSource
from diffusion.taylor import InformativeSteps, PredictionLoss
from diffusion.text import sentence_encoder
from diffusion.trajectory import Sampler, Trajectories
from diffusion.units import Kind, prunable
from secateur.datasets import Labelled, digits, fashion_mnist
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features.classifier import ClassifierFeatures
from secateur.metrics.features.demo import digit_features, fashion_features, unseen_digits
from secateur.surgery import Network
from secateur.training import generator_at

FIRST_SEED = 1_000_000
"""Of the samples that are judged; calibration has seeds far below."""


@dataclass(frozen=True)
class Data:
    """Pictures of one kind, and who judges them.

    Args:
        training: what the models were trained on.
        unseen: what neither the classifier nor, for Fashion-MNIST, the models have seen.
        features: the classifier.
        samples: how many are judged; the floor of a distance needs as many real ones twice.
        steps: of the DDIM sampler; more do not bring the dense models nearer to real pictures.
    """

    training: Callable[[], Labelled]
    unseen: Callable[[], Labelled]
    features: Callable[[], ClassifierFeatures]
    samples: int
    steps: int


DIGITS = Data(digits, unseen_digits, digit_features, 400, 5)
FASHION = Data(lambda: fashion_mnist("train"), lambda: fashion_mnist("test"), fashion_features, 300, 10)


@dataclass(frozen=True)
class Subject:
    """A demo model.

    Args:
        load: its pipeline.
        data: see `Data`.
        kinds: units that criteria choose among.
        blocks: whole modules that go by score.
    """

    load: Callable[[], Any]
    data: Data
    kinds: tuple[Kind, ...]
    blocks: tuple[Kind, ...]

    @cached_property
    def pipeline(self) -> Any:
        return self.load()

    @cached_property
    def dense(self) -> nn.Module:
        """The network, in evaluation mode; nobody changes it."""
        return self.pipeline.network.eval()

    def inputs(self, batch: int = 1) -> dict[str, Any]:
        """Example inputs, to count and to time with."""
        return example_inputs(self.dense, batch=batch, text_tokens=16)

    def network(self, kinds: Sequence[Kind]) -> Network:
        """The dense network with units of these kinds."""
        return prunable(self.dense, kinds, self.inputs())

    @cached_property
    def units(self) -> Network:
        return self.network(self.kinds)

    @cached_property
    def features(self) -> ClassifierFeatures:
        return self.data.features()

    @cached_property
    def judge(self) -> DistributionJudge:
        """Half of the unseen pictures are the reference, the other half tells the floor."""
        pixels = self.data.unseen().pixels()
        return DistributionJudge.of(self.features, pixels[0::2], pixels[1::2])

    @cached_property
    def asked(self) -> list[Any]:
        """What is asked for each class: the class, or its plain prompt."""
        names = self.features.classes
        return list(plain_prompts(names)) if self.by_prompt else list(range(len(names)))

    @property
    def by_prompt(self) -> bool:
        return hasattr(self.dense.config, "cross_attention_dim") and bool(self.dense.config.cross_attention_dim)  # type: ignore[union-attr]

    def sampling(self, seed: int, count: int, steps: int) -> Sampling:
        """`count` samples, the classes evenly, other ones for each seed."""
        seeds = range(FIRST_SEED * (1 + seed), FIRST_SEED * (1 + seed) + count)
        labels = [each % len(self.asked) for each in seeds]
        of_seed = {each: self.asked[label] for each, label in zip(seeds, labels, strict=True)}
        source = PipelineSource(self.pipeline, of_seed, steps)
        return Sampling(source, tuple(seeds), tuple(labels), batch_size=200)

    @cached_property
    def _dense_latents(self) -> dict[tuple[int, ...], Tensor]:
        return {}

    def once(self, sample: LatentSource) -> LatentSource:
        """`sample`, which keeps what the dense model made: every part of a run compares with the same."""

        def known(target: Any, seeds: Sequence[int], /) -> Tensor:
            if target is not self.dense:
                return sample(target, seeds)
            if (asked := tuple(seeds)) not in self._dense_latents:
                self._dense_latents[asked] = sample(target, seeds)
            return self._dense_latents[asked]

        return known

    def trajectories(self, seed: int, count: int, steps: int) -> Trajectories:
        """What EcoDiff and repair look along: the classes evenly."""
        conditions = self.pipeline.conditions([self.asked[index % len(self.asked)] for index in range(count)])
        shape = tuple(self.pipeline.noise([0]).shape[1:])
        return Trajectories(Sampler(self.pipeline.scheduler, steps), shape, count, conditions, seed=seed)

    def losses(self, seed: int, count: int, timesteps: int, threshold: float = 0.0) -> InformativeSteps:
        """The loss on `count` training pictures at time steps from the least noise to the most."""
        data = self.data.training()
        chosen = data.subset(torch.randperm(len(data), generator=generator_at(seed, 0))[:count])
        conditions = self.pipeline.conditions([self.asked[label] for label in chosen.labels.tolist()])

        def predict(target: Any, noisy: Tensor, times: Tensor) -> Tensor:
            return Denoiser(target.module)(noisy, times, **conditions)

        noising = Noising.of(self.pipeline.scheduler)
        middles = (torch.arange(timesteps) + 0.5) * len(noising) / timesteps
        loss = PredictionLoss(predict, chosen.pixels(-1, 1), noising, seed)
        return InformativeSteps(loss, middles.long(), threshold)

    @cached_property
    def conditions(self) -> tuple[Labelled, Conditions]:
        """Training pictures and what the network is told of them; a tenth of the time nothing."""
        data = self.data.training()
        if not self.by_prompt:
            return data, ClassLabels(data.labels, null=len(data.classes))
        texts = [training_prompts(name) for name in data.classes]
        states = sentence_encoder()(["", *(prompt for of_class in texts for prompt in of_class)]).states
        rows = torch.arange(1, len(states)).split([len(of_class) for of_class in texts])
        return data, ClassPrompts(data.labels, states, rows, null=0)

    def batches(self, seed: int, size: int) -> LatentBatches:
        """What recovery trains on."""
        data, conditions = self.conditions
        return LatentBatches(data.pixels(-1, 1), conditions, size, seed)


KINDS: Mapping[str, tuple[Kind, ...]] = {
    "digits-dit": ("heads", "neurons"),
    "digits-unet": ("heads", "channels"),
    "fashion-dit": ("heads", "neurons"),
    "fashion-unet": ("heads", "neurons", "channels"),
}
"""Model -> the units that criteria choose among."""

_UNET_BLOCKS: tuple[Kind, ...] = ("resnets", "attentions")

SUBJECTS: Mapping[str, Subject] = {
    "digits-dit": Subject(demo.digits_dit, DIGITS, KINDS["digits-dit"], ("transformer_blocks",)),
    "digits-unet": Subject(demo.digits_unet, DIGITS, KINDS["digits-unet"], _UNET_BLOCKS),
    "fashion-dit": Subject(demo.fashion_dit, FASHION, KINDS["fashion-dit"], ("transformer_blocks",)),
    "fashion-unet": Subject(
        demo.fashion_unet, FASHION, KINDS["fashion-unet"], (*_UNET_BLOCKS, "feed_forwards", "stacks")
    ),
}
"""Loaded when they are asked for the first time."""


def subject(name: str) -> Subject:
    """The model of that name."""
    return SUBJECTS[name]
