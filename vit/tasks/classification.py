"""Classification: one class an image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from vit.data import LabelledImages
from vit.tasks.task import judged


@dataclass(frozen=True, slots=True)
class ClassificationScore:
    """How good a classifier is.

    Args:
        images: how many it was measured on.
        loss: mean cross-entropy, without label smoothing, in nats.
        top1: share of images whose first choice is right.
        top5: share of images whose class is among the first five choices (all, where there are fewer).
        calibration_error: how far confidence is from the share that is right.
    """

    images: int
    loss: float
    top1: float
    top5: float
    calibration_error: float

    @property
    def primary(self) -> float:
        """Top-1 accuracy."""
        return self.top1


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with labels, or with shares of classes where images were mixed.

    Args:
        smoothing: share of a label that goes to all classes evenly (Szegedy et al. 2015, arXiv 1512.00567, section 7).

    Raises:
        ValueError: `smoothing` is not in [0, 1).
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")

    @property
    def score_name(self) -> str:
        """What is validated."""
        return "accuracy"

    def loss(self, logits: Float[Tensor, "N classes"], labels: Shaped[Tensor, "N ..."]) -> Float[Tensor, ""]:
        """The mean cross-entropy; labels are (N,) int64 or (N, classes) shares."""
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def measure(self, network: nn.Module, data: LabelledImages, batch_size: int = 256) -> ClassificationScore:
        """Accuracy and calibration on these images, in evaluation mode.

        Raises:
            ValueError: there are no images, or their classes are not the network's.
        """
        parts = list(judged(network, data, batch_size))
        return score(torch.cat([logits for logits, _ in parts]), torch.cat([labels for _, labels in parts]))


def score(logits: Float[Tensor, "N classes"], labels: Int64[Tensor, " N"]) -> ClassificationScore:
    """How good these choices are.

    The calibration error is the expected one of Guo et al. 2017 (arXiv 1706.04599, eq. 3) over 15 bins of confidence.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes = logits.shape[1]
    choices = logits.topk(min(5, classes)).indices == labels[:, None]
    probabilities = logits.softmax(1)
    return ClassificationScore(
        len(labels),
        float(functional.cross_entropy(logits, labels)),
        float(choices[:, 0].double().mean()),
        float(choices.any(1).double().mean()),
        float(multiclass_calibration_error(probabilities, labels, classes, n_bins=15, norm="l1")),
    )
