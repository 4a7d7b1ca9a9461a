"""The demo models have the sizes that they are said to have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from secateur.surgery.cost import count_params
from tests.vit.images import seeded_network
from vit.demo import networks
from vit.units import prunable


def test_fashion_has_fifty_tokens() -> None:
    network = seeded_network(networks.fashion_vit)
    tokens = network.vit(torch.zeros(1, 1, 28, 28)).last_hidden_state  # type: ignore[operator]
    assert tokens.shape == (1, 50, 96) and count_params(network) < 500_000


@pytest.mark.parametrize("build", [networks.canvas_vit, networks.canvas_segmenter])
def test_canvases_give_their_classes(build: Any) -> None:
    network: Any = seeded_network(lambda: build(24, 4, ("a", "b", "c")))
    logits = network(torch.zeros(2, 1, 24, 24)).logits
    assert logits.shape[:2] == (2, 3) and network.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_the_dense_one_has_the_same_units() -> None:
    classifier = seeded_network(lambda: networks.canvas_vit(8, 4, "ab"))
    segmenter = seeded_network(lambda: networks.canvas_segmenter(8, 4, "ab"))
    names = [[group.name for group in prunable(network).groups()] for network in (classifier, segmenter)]
    assert names[0] == names[1] and len(names[0]) == 8
