"""Fine-tuning and distillation of diffusion networks, for `secateur.training.fit` or any Lightning trainer.

Batches are mappings: "latents", and the network's conditions by the names of its arguments. What trains is what
requires gradients, so adapters compose: `secateur.recovery.lora.Perp(...).prepare(network)`, or peft's through
`network.add_adapter(...)`. Averaged weights come from `fit(..., ema=0.999)`, or from the callback
`secateur.training.Ema` under another trainer.

`fit` trains on one device. For several give the module to a trainer of Lightning, with its strategy:
`Trainer(strategy="ddp", devices=4).fit(module, loader)`. Noise is drawn from the global generator, so seed ranks apart:
else all of them draw the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffusion.denoiser import Denoiser, without_variance
from diffusion.noising import Noising, Weighting
from secateur.recovery.distill import Distillation, Features, Term
from secateur.training.rates import Rates, by_steps
from secateur.training.seeding import seeded

Batch = Mapping[str, Any]
"""Has "latents", (N, C, H, W), and the conditions by name."""


@dataclass(frozen=True)
class Target:
    """What a network shall predict of noisy latents.

    Attributes:
        values: (N, ...) the prediction.
        weights: (N,) factors of the squared errors.
    """

    values: Float[Tensor, "N ..."]
    weights: Float[Tensor, " N"]


class DenoisingTask:
    """Draws time steps and noise for a batch, and measures predictions.

    Args:
        noising: of the network's scheduler.
        weighting: the loss; None: the mean squared error of what the network predicts.

    Raises:
        ValueError: the weighting is not finite at some time step.
    """

    def __init__(self, noising: Noising, weighting: Weighting | None = None) -> None:
        self.noising = noising
        self._weights = torch.ones(len(noising)) if weighting is None else noising.weights(weighting).float()

    def draw(self, batch: Batch) -> tuple[dict[str, Any], Target]:
        """Arguments of a `Denoiser`, and what it shall predict; draws from torch's global generator.

        Raises:
            ValueError: the batch has no latents.
        """
        latents = batch.get("latents")
        if not isinstance(latents, Tensor):
            raise ValueError(f"a batch needs 'latents', it has {sorted(batch)}")
        indices = torch.randint(len(self.noising), latents.shape[:1], device=latents.device)
        noise = torch.randn_like(latents)
        inputs = {
            **batch,
            "latents": self.noising.add(latents, noise, indices),
            "timesteps": self.noising.timesteps.to(latents.device)[indices],
        }
        weights = self._weights.to(latents.device)[indices]
        return inputs, Target(self.noising.target(latents, noise, indices), weights)

    def loss(self, predicted: Float[Tensor, "N ..."], target: Target) -> Float[Tensor, ""]:
        """The weighted mean squared error, in float32; variances that a network predicts too have no part in it.

        Raises:
            ValueError: the shapes do not agree.
        """
        values = target.values
        predicted = without_variance(predicted, values)
        if predicted.shape != values.shape:
            raise ValueError(f"the network predicts {tuple(predicted.shape)} for latents of {tuple(values.shape)}")
        errors = (predicted.float() - values.float()).square().flatten(1).mean(1)
        return (target.weights * errors).mean()


class DiffusionTraining(lightning.LightningModule):
    """Trains a diffusers network in place to denoise.

    Args:
        network: a UNet or a transformer.
        task: the loss.
        rate: learning rate of AdamW.
        weight_decay: of AdamW.
        schedule: step -> factor of the rate (`secateur.training.cosine(...)`); None: the rate stays.
        held_out: batches to validate on.

    Raises:
        ValueError: `network` is no network of diffusers.
    """

    score_name = "-loss"

    def __init__(
        self,
        network: nn.Module,
        task: DenoisingTask,
        *,
        rate: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Rates | None = None,
        held_out: Sequence[Batch] = (),
    ) -> None:
        super().__init__()
        self.denoiser, self.task = Denoiser(network), task
        self.rate, self.weight_decay, self.schedule, self.held_out = rate, weight_decay, schedule, held_out

    def training_step(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """The loss of a batch at time steps and with noise drawn anew."""
        inputs, target = self.task.draw(batch)
        return self.task.loss(self.denoiser(**inputs), target)

    def validation_score(self) -> float:
        """Minus the mean loss on the batches held out.

        Raises:
            ValueError: there are none.
        """
        if not len(self.held_out):
            raise ValueError("validation needs batches that are held out: give held_out")
        return -sum(float(self.training_step(batch, 0)) for batch in self.held_out) / len(self.held_out)

    def configure_optimizers(self) -> Any:
        """AdamW over what requires gradients, its rate by steps."""
        return _adamw(self, self.rate, self.weight_decay, self.schedule)


class DiffusionDistillation(Distillation):
    """Trains a pruned diffusers network in place on data and on what the dense one does, each on the same noise.

    BK-SDM (Kim et al., arXiv 2305.15798) has the task, `OutputError()` and `block_features(network)`, each of weight
    1. The names of modules in terms begin with "network.".

    Args:
        network: what is trained.
        teacher: what it was pruned from.
        terms: the loss is the sum of weight * loss, and the task's.
        example: a batch, as in training.
        task: the loss on the data, and the noise of both.
        task_weight: of the task's loss; 0: only the teacher teaches.
        rate: learning rate of AdamW.
        weight_decay: of AdamW.
        schedule: step -> factor of the rate; None: the rate stays.
        held_out: batches to validate on.

    Raises:
        ValueError: as for `secateur.recovery.distill.Distillation`.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term],
        example: Batch,
        task: DenoisingTask,
        *,
        task_weight: float = 1.0,
        rate: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Rates | None = None,
        held_out: Sequence[Batch] = (),
    ) -> None:
        if teacher is network:
            raise ValueError("the teacher is the student: give a copy")
        with seeded(0, torch.device("cpu")):
            drawn = task.draw(example)
        super().__init__(
            Denoiser(network),
            Denoiser(teacher),
            terms,
            drawn,
            task=task.loss,
            task_weight=task_weight,
            rate=rate,
            weight_decay=weight_decay,
            held_out=held_out,
        )
        self.denoising, self.schedule = task, schedule

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name, at time steps and with noise drawn anew."""
        return super().losses(self.denoising.draw(batch))

    def configure_optimizers(self) -> Any:
        """AdamW over what requires gradients, its rate by steps."""
        return _adamw(self, self.rate, self.weight_decay, self.schedule)


def block_features(network: nn.Module, weight: float = 1.0) -> Features:
    """The features of BK-SDM's distillation (arXiv 2305.15798, eq. 4): what every block of a UNet or transformer gives.

    Blocks of two streams (SD3, Flux) are compared by what they add: their feed-forwards' outputs.

    Raises:
        ValueError: the network has no blocks.
    """
    names = []
    for name, block in _blocks(network):
        if hasattr(block, "ff_context"):
            names += [f"{name}.{part}" for part in ("ff", "ff_context") if getattr(block, part) is not None]
        else:
            names.append(f"{name}.proj_out" if hasattr(block, "proj_mlp") else name)
    if not names:
        raise ValueError(f"{type(network).__name__} has no down_blocks, up_blocks or transformer_blocks")
    is_unet = hasattr(network, "down_blocks")
    return Features(tuple(f"network.{name}" for name in names), weight, dim=1 if is_unet else -1)


def _blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    lists = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks")
    held = [(name, getattr(network, name, None)) for name in lists]
    found: list[tuple[str, nn.Module]] = []
    for name, blocks in held:
        if isinstance(blocks, nn.ModuleList):
            found += [(f"{name}.{index}", block) for index, block in enumerate(blocks)]
        elif blocks is not None:
            found.append((name, blocks))
    return found


def _adamw(module: nn.Module, rate: float, weight_decay: float, schedule: Rates | None) -> Any:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing requires gradients, so there is nothing to train")
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay)
    return by_steps(optimizer, schedule)
