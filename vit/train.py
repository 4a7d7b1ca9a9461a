"""Fine-tuning and distillation of vision networks, for `secateur.training.fit` or any Lightning trainer.

Batches are mappings of "pixel_values" and "labels", as `vit.data.ImageBatches` makes them. What trains is what requires
gradients, so adapters compose, and pruning callbacks of the core run along:

    fit(VisionTraining(network, Classification()), batches, steps=1000, callbacks=[PruningCallback(...)])

Networks are transformers' models, or any modules from pixel values to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from secateur.console import Report, silent
from secateur.recovery.distill import Distillation, Features, HardTargets, Seen, SoftTargets, Term
from secateur.training import FitRecord, cosine, fit
from secateur.training.rates import Rates
from secateur.training.weights import evaluating
from vit.augmentation import Augmentation
from vit.data import Batch, ImageBatches, LabelledImages
from vit.optimisers import adamw
from vit.tasks.task import Logits, Task, logits_of
from vit.units.layouts import layers

Auxiliary = Callable[[], Float[Tensor, ""]]
"""What a step's forward left to be added to its loss, such as the losses of a token pruner's own heads."""


class VisionTraining(lightning.LightningModule):
    """Trains a network in place on labels.

    Args:
        network: of transformers, or any that returns logits.
        task: the loss, and the score of `held_out`.
        rate: learning rate of AdamW, of the last layer.
        weight_decay: of AdamW, see `vit.optimisers.adamw`.
        layer_decay: factor of the rate from each layer to the one below.
        schedule: step -> factor of the rate (`secateur.training.cosine(...)`); None: the rate stays.
        auxiliary: called after each training step's forward; what it returns is added to the loss.
        held_out: images to validate on.
        batch_size: images at a time in validation.
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        *,
        rate: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        schedule: Rates | None = None,
        auxiliary: Auxiliary | None = None,
        held_out: LabelledImages | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        self.network, self.task, self.auxiliary, self.held_out = network, task, auxiliary, held_out
        self.rate, self.weight_decay, self.layer_decay, self.schedule = rate, weight_decay, layer_decay, schedule
        self.batch_size, self.score_name = batch_size, task.score_name

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name."""
        logits = logits_of(self.network(batch["pixel_values"]))
        return {"task": self.task.loss(logits, batch["labels"])}

    def training_step(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """The sum of the parts, and of what is auxiliary."""
        return _total(self.losses(batch), self.auxiliary)

    def validation_score(self) -> float:
        """The task's score on the images held out.

        Raises:
            ValueError: there are none.
        """
        return _validated(self.task, self.network, self.held_out, self.batch_size)

    def configure_optimizers(self) -> Any:
        """AdamW over what requires gradients, its rates by layer and step."""
        return adamw(self.network, self.rate, self.weight_decay, self.layer_decay, self.schedule)


class TokenDistillation(VisionTraining):
    """DeiT's distillation through a token of its own (Touvron et al. 2020, arXiv 2012.12877, section 4).

    The class token's head learns the labels and the distillation token's head the teacher's choices; the loss is
    (1 - share) CE(class head, labels) + share CE(distillation head, teacher's choice), eq. 3 with `share` 1/2. With a
    temperature T the second is T^2 KL(teacher / T || head / T), eq. 2. Where the network predicts, it takes the mean
    of both heads' logits.

    Args:
        network: transformers' `DeiTForImageClassificationWithTeacher`, or any whose output has `cls_logits` and
            `distillation_logits`.
        teacher: another network for the same images and classes.
        task: the loss of the class head.
        share: of the teacher, 0 to 1.
        temperature: of soft distillation; None: hard.
        options: as for `VisionTraining`.

    Raises:
        ValueError: the share is out of range, or the teacher is the network.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        task: Task,
        *,
        share: float = 0.5,
        temperature: float | None = None,
        **options: Any,
    ) -> None:
        if teacher is network:
            raise ValueError("the teacher is the student: give a copy")
        if not 0 <= share <= 1:
            raise ValueError(f"share must be in [0, 1], got {share}")
        super().__init__(network, task, **options)
        # In a tuple, it is no submodule: not saved, not trained, not put into training mode.
        self._teacher = (teacher,)
        self.share = share
        self._term = HardTargets(dim=1) if temperature is None else SoftTargets(temperature=temperature, dim=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name.

        Raises:
            ValueError: the network has no two heads, or the teacher has other classes.
        """
        output, teacher = self.network(batch["pixel_values"]), self._teacher[0]
        heads = getattr(output, "cls_logits", None), getattr(output, "distillation_logits", None)
        if heads[0] is None or heads[1] is None:
            raise ValueError(
                f"{type(self.network).__name__} has no distillation token: its output needs cls_logits and "
                "distillation_logits, as that of DeiTForImageClassificationWithTeacher"
            )
        with evaluating(teacher):
            taught = Seen(logits_of(teacher(batch["pixel_values"])), {})
        student = Seen(heads[1], {})
        self._term.maps(student, taught)  # raises where shapes differ
        return {
            "task": (1 - self.share) * self.task.loss(heads[0], batch["labels"]),
            "teacher": self.share * self._term.loss(student, taught, None),
        }

    def on_fit_start(self) -> None:
        """The teacher follows to the device where the network trains."""
        self._teacher[0].to(self.device)


class VisionDistillation(Distillation):
    """Trains a network in place on labels and on what another one makes of the same images.

    Terms are the core's: `SoftTargets(dim=1)` or `HardTargets(dim=1)` compare logits, `layer_features(...)` what layers
    give. Names of modules in terms begin with "network.".

    Args:
        network: what is trained.
        teacher: what it learns from, such as the one that it was pruned from.
        terms: the loss is the sum of weight * loss, and the task's.
        example: a batch, as in training.
        task: the loss on labels, and the score of `held_out`.
        task_weight: of the task's loss; 0: labels are not looked at.
        rate: as for `VisionTraining`; so are those that follow.

    Raises:
        ValueError: as for `secateur.recovery.distill.Distillation`.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        terms: Sequence[Term],
        example: Batch,
        task: Task,
        *,
        task_weight: float = 1.0,
        rate: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        schedule: Rates | None = None,
        auxiliary: Auxiliary | None = None,
        held_out: LabelledImages | None = None,
        batch_size: int = 256,
    ) -> None:
        if teacher is network:
            raise ValueError("the teacher is the student: give a copy")
        super().__init__(
            Logits(network),
            Logits(teacher),
            terms,
            _pair(example),
            task=task.loss if task_weight else _no_loss,
            task_weight=task_weight,
            rate=rate,
            weight_decay=weight_decay,
        )
        self.judging, self.images, self.batch_size = task, held_out, batch_size
        self.layer_decay, self.schedule, self.auxiliary = layer_decay, schedule, auxiliary
        self.score_name = task.score_name

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        assert isinstance(self.student, Logits)
        return self.student.network

    def losses(self, batch: Batch | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The weighted parts of a batch's loss by name."""
        return super().losses(_pair(batch) if isinstance(batch, Mapping) else batch)

    def training_step(self, batch: Batch, step: int) -> Float[Tensor, ""]:
        """The sum of the parts, and of what is auxiliary."""
        return _total(self.losses(batch), self.auxiliary)

    def validation_score(self) -> float:
        """The task's score on the images held out.

        Raises:
            ValueError: there are none.
        """
        return _validated(self.judging, self.network, self.images, self.batch_size)

    def configure_optimizers(self) -> Any:
        """AdamW over what requires gradients, its rates by layer and step."""
        maps = self.maps.parameters()
        return adamw(self.network, self.rate, self.weight_decay, self.layer_decay, self.schedule, beside=maps)


@dataclass(frozen=True)
class FineTune:
    """How a network is trained: what a recipe says of it.

    Args:
        steps: of training.
        batch_size: images in each.
        rate: highest learning rate of AdamW; it rises for `warmup` steps and falls by half a cosine.
        warmup: steps.
        weight_decay: of AdamW.
        layer_decay: factor of the rate from each layer to the one below.
        ema: decay of averaged weights, which are what is kept; None: the weights themselves are.
        clip_norm: greatest norm of the gradient; None: any.
        validate_every: steps between validations, of which the best one's weights are kept; None: the last are.
        patience: validations without improvement after which training ends; None: it goes on.
        augmentation: of images.
    """

    steps: int = 1000
    batch_size: int = 64
    rate: float = 5e-4
    warmup: int = 50
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    ema: float | None = None
    clip_norm: float | None = 1.0
    validate_every: int | None = None
    patience: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


def recover(
    network: nn.Module,
    task: Task,
    data: LabelledImages,
    options: FineTune,
    *,
    held_out: LabelledImages | None = None,
    teacher: nn.Module | None = None,
    terms: Sequence[Term] = (SoftTargets(dim=1),),
    task_weight: float = 1.0,
    auxiliary: Auxiliary | None = None,
    callbacks: Sequence[lightning.Callback] = (),
    checkpoint: Path | None = None,
    seed: int = 0,
    report: Report = silent,
) -> FitRecord:
    """Train `network` in place, on labels alone or with a teacher; it ends in evaluation mode.

    Args:
        network: pruned or not; of transformers, or any that returns logits.
        task: the loss, and the score by which the best weights are kept.
        data: images to train on.
        options: how.
        held_out: images to validate on; needed where `options` validates.
        teacher: what it was pruned from, say; None: labels are all there is.
        terms: how it teaches.
        task_weight: of the loss on labels, where there is a teacher.
        auxiliary: called after each step's forward; what it returns is added to the loss.
        callbacks: of Lightning, such as the core's `PruningCallback`.
        checkpoint: where the training is kept, and goes on from; None: nowhere.
        seed: of batches and augmentation.
        report: told how far it is.

    Raises:
        ValueError: an option is out of range, validation lacks images, or the loss is not finite.
    """
    batches = ImageBatches(data, options.batch_size, seed, options.augmentation)
    if options.validate_every is not None and held_out is None:
        raise ValueError("validation needs images that are held out: give held_out")
    if options.steps == 0:
        return FitRecord(0, (), (), None, False, 0.0)
    common: dict[str, Any] = {
        "rate": options.rate,
        "weight_decay": options.weight_decay,
        "layer_decay": options.layer_decay,
        "schedule": cosine(min(options.warmup, options.steps - 1), options.steps),
        "auxiliary": auxiliary,
        "held_out": held_out,
    }
    network.train()
    module: VisionTraining | VisionDistillation
    if teacher is None:
        module = VisionTraining(network, task, **common)
    else:
        example = {name: value.to(_device(network)) for name, value in batches.batch_at(0).items()}
        module = VisionDistillation(network, teacher, terms, example, task, task_weight=task_weight, **common)
    record = fit(
        module,
        batches,
        steps=options.steps,
        seed=seed,
        ema=options.ema,
        clip_norm=options.clip_norm,
        validate_every=options.validate_every,
        patience=options.patience,
        checkpoint=checkpoint,
        resume=True,
        identity=asdict(options),
        callbacks=callbacks,
        report=report,
    )
    network.eval()
    return record


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


def layer_features(network: nn.Module, weight: float = 1.0, kept: Int64[Tensor, " features"] | None = None) -> Features:
    """A term of `VisionDistillation` that compares the stream of tokens behind each layer that is left.

    Args:
        network: what is trained.
        weight: of the term.
        kept: the teacher's features that the student's stream still has; None: where widths differ, linear maps train
            along.

    Raises:
        ValueError: the network has no layers of a vision transformer.
    """
    names = tuple(f"network.{layer.name}" for layer in layers(network))
    if not names:
        raise ValueError(f"{type(network).__name__} has no layers with an attention and a feed-forward")
    return Features(names, weight, dim=-1, kept={} if kept is None else dict.fromkeys(names, kept))


def _pair(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    return batch["pixel_values"], batch["labels"]


def _no_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.new_zeros(())


def _total(parts: Mapping[str, Tensor], auxiliary: Auxiliary | None) -> Float[Tensor, ""]:
    total = torch.stack(list(parts.values())).sum()
    return total if auxiliary is None else total + auxiliary()


def _validated(task: Task, network: nn.Module, held_out: LabelledImages | None, batch_size: int) -> float:
    if held_out is None:
        raise ValueError("validation needs images that are held out: give held_out")
    return task.measure(network, held_out, batch_size).primary
