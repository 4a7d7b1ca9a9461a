"""Scores are what their definitions give by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.vit.images import noise
from tests.vit.models import random_model
from vit.data import LabelledImages
from vit.tasks.classification import Classification, ClassificationScore, score
from vit.tasks.segmentation import Segmentation
from vit.tasks.task import Logits, logits_of


class Told(nn.Module):
    """Gives logits that were written down, in the order of the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.next = logits, 0

    def forward(self, pixel_values: Tensor) -> Tensor:
        assert not self.training
        self.next += len(pixel_values)
        return self.logits[self.next - len(pixel_values) : self.next]


LOGITS = torch.tensor([[4.0, 3, 2, 1, 0, -1], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0.5, 0.0, 0.0, 0.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 4, 0, 0])


def test_a_classifier_by_hand() -> None:
    found = score(LOGITS, LABELS)
    probabilities = LOGITS.softmax(1)
    loss = -sum(math.log(probabilities[row, label]) for row, label in enumerate(LABELS)) / 4
    confidence, right = probabilities.max(1).values, LOGITS.argmax(1) == LABELS
    bins: dict[int, list[tuple[float, bool]]] = {int(value * 15): [] for value in confidence}
    for value, hit in zip(confidence.tolist(), right.tolist(), strict=True):
        bins[int(value * 15)].append((value, hit))
    error = sum(abs(sum(hit for _, hit in held) - sum(value for value, _ in held)) for held in bins.values()) / 4
    assert (found.images, found.top1, found.top5) == (4, 0.5, 0.75)
    assert found.loss == pytest.approx(loss) and found.calibration_error == pytest.approx(error, abs=1e-6)
    assert found.primary == found.top1


def test_batches_do_not_matter() -> None:
    data = noise(4, classes=6)
    data = LabelledImages(data.images, LABELS, data.classes)
    one, many = (Classification().measure(Told(LOGITS).train(), data, size) for size in (1, 256))
    assert one == many == score(LOGITS, LABELS)


def test_few_classes_have_fewer_choices() -> None:
    assert score(LOGITS[:, :3], torch.tensor([2, 2, 0, 0])).top5 == 1.0


def test_the_loss_of_labels_and_of_shares() -> None:
    soft = torch.nn.functional.one_hot(LABELS, 6).float()
    for smoothing in (0.0, 0.1):
        task = Classification(smoothing)
        wanted = -((soft * (1 - smoothing) + smoothing / 6) * LOGITS.log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(task.loss(LOGITS, LABELS), wanted)
        torch.testing.assert_close(task.loss(LOGITS, soft), wanted)
    mixed = 0.25 * soft + 0.75 * soft.flip(0)
    parts = [-(part * LOGITS.log_softmax(1)).sum(1).mean() for part in (soft, soft.flip(0))]
    torch.testing.assert_close(Classification().loss(LOGITS, mixed), 0.25 * parts[0] + 0.75 * parts[1])


def test_maps_by_hand() -> None:
    labels = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 2]]])
    claimed = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    data = LabelledImages(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), labels, ("back", "a", "b", "never"))
    logits = 8.0 * torch.nn.functional.one_hot(claimed, 4).movedim(-1, 1).float()
    found = Segmentation().measure(Told(logits), data, 1)
    assert found.pixel_accuracy == 6 / 8
    assert found.mean_iou == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)  # the class that nobody names has no part
    assert found.primary == found.mean_iou and found.images == 2
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    assert Segmentation().measure(Told(logits), data, 2).loss == pytest.approx(found.loss)


@pytest.mark.parametrize("family", ["vit", "deit_teacher", "dinov2", "torch"])
def test_networks_of_every_kind_give_logits(family: str) -> None:
    network, data = random_model(family), noise(3)
    assert Logits(network)(data.pixel_values()).shape == (3, 5)
    assert isinstance(Classification().measure(network, data), ClassificationScore)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        Classification().measure(random_model("vit"), noise(0))
    with pytest.raises(ValueError, match="images have 3 classes"):
        Classification().measure(random_model("vit"), noise(3, classes=3))
    with pytest.raises(ValueError, match="returns a dict without logits"):
        logits_of({})
    with pytest.raises(ValueError, match="smoothing"):
        Classification(1.0)
