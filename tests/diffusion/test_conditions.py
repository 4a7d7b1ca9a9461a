"""Batches are pure functions of the step; conditions belong to their samples, or are dropped as often as asked."""

from __future__ import annotations

import pytest
import torch

from diffusion.conditions import ClassLabels, ClassPrompts, LatentBatches
from tests.contracts import assert_deterministic, assert_same

LABELS = torch.arange(300) % 3
LATENTS = torch.arange(300.0).reshape(300, 1, 1, 1)
STATES = torch.arange(7.0).reshape(7, 1, 1).expand(7, 2, 3)
PROMPTS = [torch.tensor([1, 2]), torch.tensor([3]), torch.tensor([4, 5, 6])]


def prompts(drop: float) -> ClassPrompts:
    return ClassPrompts(LABELS, STATES, PROMPTS, null=0, drop=drop)


def test_labels_belong_to_their_samples() -> None:
    batches = LatentBatches(LATENTS, ClassLabels(LABELS, null=3, drop=0.0), batch_size=100)
    batch = batches.batch_at(5)
    assert torch.equal(batch["class_labels"], batch["latents"].flatten().long() % 3)


def test_prompts_are_those_of_the_class_and_each_is_drawn() -> None:
    batches = LatentBatches(LATENTS, prompts(0.0), batch_size=300)
    batch = batches.batch_at(0)
    rows = batch["encoder_hidden_states"][:, 0, 0].long()
    labels = batch["latents"].flatten().long() % 3
    for label, of_class in enumerate(PROMPTS):
        assert set(rows[labels == label].tolist()) == set(of_class.tolist())
    counts = rows[labels == 2].bincount()[4:]
    assert counts.min() > 15  # of 100, a third each


def test_conditions_are_dropped_as_often_as_asked() -> None:
    for drop in (0.0, 0.25, 1.0):
        generator = torch.Generator().manual_seed(0)
        many = torch.arange(300).repeat(20)
        labels = ClassLabels(LABELS, null=3, drop=drop).at(many, generator)["class_labels"]
        assert (labels == 3).double().mean() == pytest.approx(drop, abs=0.03)
        states = prompts(drop).at(many, generator)["encoder_hidden_states"]
        assert (states[:, 0, 0] == 0).double().mean() == pytest.approx(drop, abs=0.03)


def test_steps_can_be_asked_for_in_any_order() -> None:
    batches = LatentBatches(LATENTS, prompts(0.1), batch_size=64, seed=3)
    first = assert_deterministic(lambda: batches.batch_at(7))
    batches.batch_at(2)
    assert_same(batches.batch_at(7), first)
    assert not torch.equal(batches.batch_at(8)["latents"], first["latents"])


def test_a_class_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="a prompt each"):
        ClassPrompts(LABELS, STATES, PROMPTS[:2], null=0)
    with pytest.raises(ValueError, match="a prompt each"):
        ClassPrompts(LABELS, STATES, [*PROMPTS[:2], torch.tensor([], dtype=torch.int64)], null=0)
