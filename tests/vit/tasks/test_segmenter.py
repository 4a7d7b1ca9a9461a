"""The dense head gives each pixel a class, is a model of transformers, and learns digits among clutter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from secateur.datasets import Labelled, digits
from tests.vit.images import seeded_network
from vit.augmentation import Augmentation
from vit.demo.networks import canvas_segmenter, canvas_vit
from vit.tasks.canvases import DIGITS, marked_things, things_everywhere
from vit.tasks.classification import Classification
from vit.tasks.segmentation import Segmentation
from vit.tasks.segmenter import ViTForPatchSegmentation
from vit.train import FineTune, recover


def small(size: int = 12, patch: int = 4) -> Any:
    return seeded_network(lambda: canvas_segmenter(size, patch, ("background", "a", "b"))).eval()


def test_pixels_have_scores_and_a_loss() -> None:
    network, pixels = small(), torch.randn(2, 1, 12, 12)
    labels = torch.randint(3, (2, 12, 12))
    output = network(pixels, labels=labels)
    assert output.logits.shape == (2, 3, 12, 12)
    torch.testing.assert_close(output.loss, Segmentation().loss(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)


def test_a_patch_decides_for_its_own_pixels() -> None:
    network = small()
    tokens: list[torch.Tensor] = []
    network.vit.layernorm.register_forward_hook(lambda _part, _inputs, output: tokens.append(output))
    logits = network(torch.randn(1, 1, 12, 12)).logits
    scores = network.classifier(tokens[0][:, 1:]).transpose(1, 2).unflatten(2, (3, 3))
    corners = logits[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, scores[:, :, [0, 0, -1, -1], [0, -1, 0, -1]])


def test_it_is_a_model_of_transformers(tmp_path: Path) -> None:
    network, pixels = small(), torch.randn(1, 1, 12, 12)
    network.save_pretrained(tmp_path)
    again = ViTForPatchSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(network(pixels).logits, again(pixels).logits)
    assert again.config.id2label == {0: "background", 1: "a", 2: "b"}


def test_missing_tokens_are_refused() -> None:
    network = small()
    network.vit.layers[-1].register_forward_pre_hook(lambda _part, inputs: (inputs[0][:, :5], *inputs[1:]))
    with pytest.raises(ValueError, match="3x3 patches needs as many tokens, the network ends with 5"):
        network(torch.randn(1, 1, 12, 12))


def test_both_tasks_are_learnt_a_little() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    options = FineTune(steps=25, batch_size=16, rate=3e-3, warmup=3)
    canvases = things_everywhere(digits(), 200, DIGITS)
    network = seeded_network(lambda: canvas_segmenter(DIGITS.size, 4, canvases.classes))
    before = Segmentation().measure(network, canvases)
    recover(network, Segmentation(), canvases, options)
    after = Segmentation().measure(network, canvases)
    assert after.loss < 0.7 * before.loss and after.pixel_accuracy > before.pixel_accuracy
    marked = marked_things(digits(), 100, DIGITS)
    classifier = seeded_network(lambda: canvas_vit(DIGITS.size, 4, marked.classes))
    record = recover(classifier, Classification(), marked, options)
    assert record.losses[-1][1] < record.losses[0][1]


def test_mixing_of_maps_is_refused() -> None:
    grey = Labelled(torch.full((2, 8, 8), 200, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    options = FineTune(steps=1, batch_size=2, augmentation=Augmentation(mixup=1.0))
    with pytest.raises(ValueError, match="know nothing of maps"):
        recover(small(24), Segmentation(), things_everywhere(grey, 4, DIGITS), options)
