from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.training import Collated, Shuffled, generator_at
from tests.contracts import assert_deterministic, assert_same


@given(count=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation(count: int, batch_size: int, seed: int) -> None:
    batches = Shuffled(count, batch_size, seed)
    steps = -(-3 * count // batch_size)
    drawn = torch.cat([batches.batch_at(step) for step in range(steps)])
    assert len(drawn) == steps * batch_size
    for epoch in range(3):
        assert sorted(drawn[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


def test_batches_can_be_asked_for_in_any_order() -> None:
    ahead = [Shuffled(10, 3, 1).batch_at(step) for step in range(8)]
    back = [Shuffled(10, 3, 1).batch_at(step) for step in reversed(range(8))]
    assert_same(ahead, back[::-1])


def test_epochs_and_seeds_differ() -> None:
    assert not torch.equal(Shuffled(50, 50).batch_at(0), Shuffled(50, 50).batch_at(1))
    assert not torch.equal(Shuffled(50, 50, 0).batch_at(0), Shuffled(50, 50, 1).batch_at(0))


def test_a_batch_is_the_caller_s_own() -> None:
    batches = Shuffled(5, 5)
    before = batches.batch_at(0).clone()
    batches.batch_at(0).zero_()
    assert_same(before, batches.batch_at(0))


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (4, 0)])
def test_there_must_be_something_to_draw(count: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Shuffled(count, batch_size)


class Jittered:
    """Items that are drawn at random."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.tensor([float(index)]) + 0.1 * torch.rand(2), "label": index}


def test_augmentation_repeats_and_leaves_the_global_generator() -> None:
    def draw() -> list[dict[str, Tensor]]:
        return [Collated(Jittered(), 4, seed=2).batch_at(step) for step in (5, 0)]

    batch = assert_deterministic(draw)[0]
    assert batch["x"].shape == (4, 2)
    assert_same(batch["label"], Shuffled(7, 4, 2).batch_at(5))
    torch.testing.assert_close(batch["x"], batch["label"][:, None] + torch.full((4, 2), 0.05), atol=0.05, rtol=0)


def test_generators_are_their_steps_own() -> None:
    def draw() -> list[Tensor]:
        return [torch.rand(3, generator=generator_at(seed, step)) for seed, step in ((0, 1), (1, 0), (0, 1))]

    first, second, again = assert_deterministic(draw)
    assert_same(first, again)
    assert not torch.equal(first, second)
