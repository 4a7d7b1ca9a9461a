"""Block movement pruning of vision transformers: hybrid units, heads, and what comes of the masks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.block_compaction import compact, expand_blocks
from secateur.block_sparse import BlockSparseLinear, with_blocks
from secateur.blocks import block_mask
from secateur.granularity import Block, Columns, Rows, Weights
from secateur.importance.movement import Movement
from secateur.masked_training import MovementPruning, SoftMovementPruning
from secateur.schedules import Polynomial
from secateur.surgery.dead import cut_dead
from secateur.training import Shuffled, fit
from tests.contracts import assert_same
from tests.vit.models import swin, vit
from vit.movement import block_masks, hybrid_units
from vit.units import prunable


class Learner(lightning.LightningModule):
    """A ViT that learns classes of noise."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = vit(**changes)
        source = torch.Generator().manual_seed(1)
        self.images = torch.randn(16, 3, 8, 8, generator=source)
        self.labels = torch.randint(5, (16,), generator=source)

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.images[batch]).logits, self.labels[batch])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


BATCHES = Shuffled(16, 8, seed=1)


def learn(learner: Learner, callbacks: list[lightning.Callback], steps: int = 6) -> None:
    fit(learner, BATCHES, steps=steps, callbacks=callbacks)


def test_every_matrix_of_the_blocks_has_its_units() -> None:
    model = swin()
    found = hybrid_units(model, block=(4, 4))
    assert [units for units, _ in found] == [Block(4, 4), Rows(), Columns()]
    names = [{name for name, each in model.named_parameters() if params(name, each)} for _, params in found]
    assert all("attention" in name for name in names[0]) and len(names[0]) == 16
    assert all(name.endswith("fc1.weight") for name in names[1]) and all("fc2" in name for name in names[2])
    heads = {units: params for units, params in hybrid_units(model, "heads")}  # noqa: C416  the two are told apart
    assert set(heads) == {Block(4, 8), Block(8, 4), Block(4, 16), Block(16, 4), Rows(), Columns()}
    with pytest.raises(ValueError, match="does not divide into 5 x 5"):
        hybrid_units(model, block=(5, 5))
    with pytest.raises(ValueError, match="no attention"):
        hybrid_units(nn.Linear(2, 2))


@pytest.mark.parametrize("soft", [False, True])
def test_a_hybrid_training_keeps_its_shares_and_loses_what_is_dead(soft: bool) -> None:
    learner, half = Learner(), Budget(share=0.5)
    callbacks: list[Any] = [
        SoftMovementPruning(0.1, budget=half, granularity=units, params=params, min_keep=0)
        if soft
        else MovementPruning(Polynomial(3), half, 4, granularity=units, params=params, min_keep=0)
        for units, params in hybrid_units(learner.model, block=(4, 4))
    ]
    learn(learner, callbacks)
    for callback in callbacks:
        kept = sum(int(mask.sum()) for mask in callback.keep.values())
        assert kept == sum(len(mask) for mask in callback.keep.values()) // 2
    target = prunable(learner.model.eval(), min_keep=0)
    small = cut_dead(target)
    narrowing = next(callback for callback in callbacks if callback.granularity == Columns())
    widths = [layer.mlp.fc1.out_features for layer in small.module.vit.layers]  # type: ignore[union-attr]
    assert widths == [int(mask.sum()) for mask in narrowing.keep.values()]
    torch.testing.assert_close(
        small.module(learner.images).logits, learner.model(learner.images).logits, rtol=1e-4, atol=1e-5
    )


def test_a_heads_movement_is_the_sum_of_its_blocks() -> None:
    learner = Learner()
    together = Movement(units=prunable(learner, ("heads",)))
    by_head = [Movement(units, params) for units, params in hybrid_units(learner.model, "heads")]
    learn(learner, [together, *by_head])
    heads = together.scores
    blocks = {name: score for movement in by_head for name, score in movement.scores.items()}
    for layer in range(3):
        attention = f"model.vit.layers.{layer}.attention"
        total = sum(blocks[f"{attention}.{part}_proj.weight"] for part in "qkvo")
        torch.testing.assert_close(heads[f"{attention}.heads"], total, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="was not watched"):
        by_head[0].score(prunable(learner, ("neurons",)))


def test_masks_of_blocks_become_block_sparse_layers_and_come_back() -> None:
    learner = Learner(hidden_size=64, intermediate_size=64)

    def params(name: str, tensor: Tensor) -> bool:
        return "fc" in name and tensor.dim() == 2

    callback = MovementPruning(
        Polynomial(3), Budget(share=0.3), 4, granularity=Block(16, 16), params=params, min_keep=0
    )
    learn(learner, [callback])
    learner.eval()
    keep = block_masks(learner, callback.keep, (16, 16))
    assert len(keep) == 6 and sum(int(mask.sum()) for mask in keep.values()) == int(0.3 * 6 * 16)
    for name, mask in keep.items():
        weight = learner.get_submodule(name).weight
        assert_same(block_mask(expand_blocks(mask, weight.shape), 16, 16), mask)  # type: ignore[arg-type]
        assert_same(block_mask(weight != 0, 16, 16), mask)  # type: ignore[arg-type,operator]
    wanted = learner.model(learner.images).logits
    sparse = with_blocks(learner, keep)
    assert any(isinstance(module, BlockSparseLinear) for module in sparse.modules())
    torch.testing.assert_close(sparse.model(learner.images).logits, wanted, rtol=1e-4, atol=1e-5)  # type: ignore[operator,union-attr]
    small, left = compact(prunable(learner, ("neurons",), min_keep=0), keep)
    torch.testing.assert_close(
        with_blocks(small.module, left).model(learner.images).logits,  # type: ignore[operator,union-attr]
        wanted,
        rtol=1e-4,
        atol=1e-5,
    )
    with pytest.raises(ValueError, match="not for blocks of 8 x 16"):
        block_masks(learner, [callback.keep], (8, 16))


def test_single_blocks_are_single_weights() -> None:
    states = []
    for units in (Block(1, 1), None):
        learner = Learner()
        callback = MovementPruning(Polynomial(3), Budget(share=0.4), 4, granularity=units)
        learn(learner, [callback])
        states.append(dict(learner.state_dict()))
        assert sum(int(mask.sum()) for mask in callback.keep.values()) == int(
            0.4 * sum(group.size for group in Weights(learner).groups())
        )
    assert_same(*states)
