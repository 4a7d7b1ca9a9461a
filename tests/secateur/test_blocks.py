"""Block scores, and budgets of power over block-sparse layers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.blocks import BlockTaylor
from secateur.distortion import RateDistortion
from secateur.solvers.gram import Gram
from secateur.solvers.obs import quadratic_loss
from secateur.units import UnitGroup
from tests.contracts import assert_allocator_keeps_its_contracts, assert_deterministic
from tests.secateur.toys import generator


def layer(rows: int, d: int, seed: int = 0) -> tuple[Tensor, Gram]:
    source = generator(seed)
    inputs = torch.randn(60, d, generator=source, dtype=torch.float64)
    return torch.randn(rows, d, generator=source, dtype=torch.float64), Gram(d, dtype=torch.float64).add(inputs)


def test_a_score_is_what_zeroing_the_block_alone_costs() -> None:
    weight, gram = layer(6, 8)
    scores = assert_deterministic(lambda: BlockTaylor(3, 2).score(weight, gram))
    assert scores.shape == (2, 4)
    for row, column in product(range(2), range(4)):
        change = torch.zeros_like(weight)
        change[3 * row : 3 * row + 3, 2 * column : 2 * column + 2] = weight[
            3 * row : 3 * row + 3, 2 * column : 2 * column + 2
        ]
        assert float(scores[row, column]) == pytest.approx(quadratic_loss(change, gram.mean))


def test_scores_of_inputs_with_nothing_in_common_add_up_to_the_layers_loss() -> None:
    weight, _ = layer(4, 6)
    gram = Gram(6, dtype=torch.float64).add(torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64)))
    scores = BlockTaylor(2, 3).score(weight, gram)
    assert float(scores.sum()) == pytest.approx(quadratic_loss(weight, gram.mean))


def test_permuting_block_rows_permutes_scores() -> None:
    weight, gram = layer(6, 4)
    scores = BlockTaylor(2, 2).score(weight, gram)
    permuted = weight.reshape(3, 2, 4)[[2, 0, 1]].reshape(6, 4)
    torch.testing.assert_close(BlockTaylor(2, 2).score(permuted, gram), scores[[2, 0, 1]])


def test_power_is_split_over_layers_exactly() -> None:
    criterion = BlockTaylor(2, 2)
    blocks = {f"layer{index}": criterion.score(*layer(4, 6, seed=index)) for index in range(3)}
    scores = {name: each.flatten() for name, each in blocks.items()}
    groups = [
        UnitGroup(name, 6, (), {"power": torch.full((6,), float(watts))}, min_keep=0)
        for watts, name in enumerate(blocks, 1)
    ]
    allocator = RateDistortion({name: criterion.curve(each) for name, each in blocks.items()}, "multiplier")
    budgets = [Budget(share=share, cost="power") for share in (0.0, 0.3, 0.7)] + [Budget(share=0.5)]
    assert_allocator_keeps_its_contracts(allocator, scores, groups, budgets)
    exact = RateDistortion(allocator.curves)
    for budget in budgets:
        lost = [
            sum(float(scores[name][~kept].sum()) for name, kept in each(scores, groups, budget).items())
            for each in (allocator, exact)
        ]
        assert lost[1] <= lost[0] + 1e-9


def test_wrong_layers_are_refused() -> None:
    weight, gram = layer(4, 6)
    with pytest.raises(ValueError, match="no whole blocks of 3 x 2"):
        BlockTaylor(3, 2).score(weight, gram)
    with pytest.raises(ValueError, match="of 6 inputs"):
        BlockTaylor(2, 2).score(weight, Gram(4))
