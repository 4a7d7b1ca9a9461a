"""Segmentation: a class for each pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from vit.data import LabelledImages
from vit.tasks.task import judged


@dataclass(frozen=True, slots=True)
class SegmentationScore:
    """How good maps of classes are.

    Args:
        images: how many they were measured on.
        loss: mean cross-entropy of pixels, in nats.
        pixel_accuracy: share of pixels that have the right class.
        mean_iou: intersection over union of each class over all images together, the mean of the classes that are
            there or were claimed to be.
    """

    images: int
    loss: float
    pixel_accuracy: float
    mean_iou: float

    @property
    def primary(self) -> float:
        """The mean intersection over union."""
        return self.mean_iou


@dataclass(frozen=True)
class Segmentation:
    """Cross-entropy of each pixel."""

    @property
    def score_name(self) -> str:
        """What is validated."""
        return "mean IoU"

    def loss(self, logits: Float[Tensor, "N classes H W"], labels: Int64[Tensor, "N H W"]) -> Float[Tensor, ""]:
        """The mean cross-entropy of pixels."""
        return functional.cross_entropy(logits, labels)

    def measure(self, network: nn.Module, data: LabelledImages, batch_size: int = 256) -> SegmentationScore:
        """Pixels and classes on these images, in evaluation mode.

        Raises:
            ValueError: there are no images, or their classes are not the network's.
        """
        classes = len(data.classes)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        loss = 0.0
        for logits, labels in judged(network, data, batch_size):
            loss += float(functional.cross_entropy(logits, labels)) * len(labels) / len(data)
            confusion += confusion_of(logits.argmax(1), labels, classes).cpu()
        right = confusion.diagonal().double()
        union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        shares = right[union > 0] / union[union > 0]
        return SegmentationScore(len(data), loss, float(right.sum() / confusion.sum()), float(shares.mean()))


def confusion_of(
    predicted: Int64[Tensor, "*shape"], labels: Int64[Tensor, "*shape"], classes: int
) -> Int64[Tensor, "classes classes"]:
    """How often each class (rows) was taken for each (columns)."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    return multiclass_confusion_matrix(predicted, labels, classes)
