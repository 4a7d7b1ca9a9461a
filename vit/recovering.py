"""Training of what is left, by a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from torch import Tensor, nn

from secateur.console import Report, silent
from secateur.recovery.distill import HardTargets, SoftTargets, Term
from secateur.recovery.zeros import HoldZeros
from secateur.training import FitRecord, fit
from vit.data import ImageBatches
from vit.pruned import PrunedModel
from vit.sources import ImageParts
from vit.steps import Distil, Recovery
from vit.tasks.classification import Classification
from vit.tokens.cropr import Cropr
from vit.tokens.reduced_model import ReducedModel
from vit.train import FineTune, layer_features
from vit.train import recover as train


class HeadLosses(lightning.Callback):
    """The losses of a token pruner, on the labels of the batch that is trained on: of its heads, and its own.

    Args:
        reduced: the model whose tokens go.
        loss: (what a head predicts, the batch's labels) -> the head's loss.
    """

    def __init__(self, reduced: ReducedModel, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.reduced, self.loss = reduced, loss
        self._labels: Tensor | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._labels = batch["labels"]

    def __call__(self) -> Tensor:
        """Their sum in the last forward."""
        labels = self._labels
        assert labels is not None
        return self.reduced.reduction.auxiliary_loss(lambda prediction: self.loss(prediction, labels))


def recover(
    pruned: PrunedModel,
    teacher: nn.Module,
    images: ImageParts,
    options: Recovery,
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    report: Report = silent,
) -> FitRecord:
    """Train in place. Zeros stay zeros; a pruner of tokens that learns trains along.

    Args:
        pruned: what is left.
        teacher: the dense model.
        images: to train on, and to validate on.
        options: the recipe's.
        checkpoint: where the training is kept, and goes on from.
        seed: of batches and augmentation.
        report: told how far it is.

    Raises:
        ValueError: an option is out of range, or the loss is not finite.
    """
    network = pruned.network.module
    network.requires_grad_(True)
    task = Classification()
    callbacks: list[lightning.Callback] = [HoldZeros()] if pruned.sparse else []
    reduced = None if pruned.tokens is None else pruned.tokens.on(network)
    heads = None
    if reduced is not None and isinstance(pruned.tokens and pruned.tokens.pruner, nn.Module):
        heads = HeadLosses(reduced, task.loss)
        callbacks.append(heads)
    trained = network if reduced is None else reduced
    try:
        if options.module is not None:
            return _by_own_module(trained, teacher, images, options, callbacks, checkpoint, seed, report)
        distil = options.distil
        return train(
            trained,
            task,
            images.training,
            FineTune(**{each.name: getattr(options, each.name) for each in fields(FineTune)}),
            held_out=images.validation,
            teacher=None if distil is None else teacher,
            terms=() if distil is None else terms_of(distil, trained),
            task_weight=1.0 if distil is None else distil.task,
            auxiliary=heads,
            callbacks=callbacks,
            checkpoint=checkpoint,
            seed=seed,
            report=report,
        )
    finally:
        trained.eval()
        if reduced is not None:
            reduced.release()


def _by_own_module(
    network: nn.Module,
    teacher: nn.Module,
    images: ImageParts,
    options: Recovery,
    callbacks: Sequence[lightning.Callback],
    checkpoint: Path | None,
    seed: int,
    report: Report,
) -> FitRecord:
    """Train by a Lightning module that the recipe names."""
    assert options.module is not None
    module = options.module(network.train(), teacher)
    if not isinstance(module, lightning.LightningModule):
        raise ValueError(f"recover.module must make a LightningModule, got a {type(module).__name__}")
    return fit(
        module,
        ImageBatches(images.training, options.batch_size, seed, options.augmentation),
        steps=options.steps,
        seed=seed,
        ema=options.ema,
        clip_norm=options.clip_norm if module.automatic_optimization else None,
        validate_every=options.validate_every,
        patience=options.patience,
        checkpoint=checkpoint,
        resume=True,
        callbacks=callbacks,
        report=report,
    )


def terms_of(distil: Distil, network: nn.Module) -> list[Term]:
    """What the teacher is followed in.

    Raises:
        ValueError: nothing is.
    """
    terms: list[Term] = []
    if distil.outputs:
        terms.append(SoftTargets(distil.outputs, distil.temperature, dim=1))
    if distil.hard:
        terms.append(HardTargets(distil.hard, dim=1))
    if distil.features:
        terms.append(layer_features(network, distil.features))
    if not terms:
        raise ValueError("distil has no weight above 0: leave it out, or set outputs, hard or features")
    return terms


def finished(pruner: Any) -> Any:
    """The pruner as it is used after training: Cropr's merged queries in place of its heads."""
    return pruner.inference() if isinstance(pruner, Cropr) else pruner
