"""Block scores, and budgets of power over block-sparse layers."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.blocks import BlockedCSR, BlockTaylor, block_mask, from_blocked_csr, to_blocked_csr
from secateur.distortion import RateDistortion
from secateur.patterns import Blocks
from secateur.solvers.gram import Gram
from secateur.solvers.obs import quadratic_loss
from secateur.units import UnitGroup
from tests.contracts import assert_allocator_keeps_its_contracts, assert_deterministic, assert_same
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


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mask_of_blocks_becomes_blocked_csr_and_comes_back(share: float) -> None:
    weight, gram = layer(6, 8)
    scores = BlockTaylor(3, 2).score(weight, gram)
    mask = Blocks(share, 3, 2).mask(scores.repeat_interleave(3, 0).repeat_interleave(2, 1))
    keep = block_mask(mask, 3, 2)
    blocked = to_blocked_csr(weight, keep)
    assert blocked.values.shape == (int(keep.sum()), 3, 2)
    assert_same(blocked.kept(), keep)
    assert_same(from_blocked_csr(blocked), torch.where(mask, weight, 0.0))
    again = to_blocked_csr(from_blocked_csr(blocked), blocked.kept())
    for name in ("values", "col_indices", "crow_indices"):
        assert_same(getattr(again, name), getattr(blocked, name), name)


@pytest.mark.filterwarnings("ignore:Sparse BSR")
def test_blocks_are_those_of_torch_and_kept_zeros_stay() -> None:
    weight, _ = layer(4, 6)
    keep = torch.tensor([[True, False, True], [False, True, False]])
    weight[2:, 2:4] = 0.0
    blocked = to_blocked_csr(weight, keep)
    assert len(blocked.values) == 3 and not bool(blocked.values[2].any())
    weight[2:, 2:4] = 5.0
    blocked = to_blocked_csr(weight, keep)
    torchs = (weight * keep.repeat_interleave(2, 0).repeat_interleave(2, 1)).to_sparse_bsr((2, 2))
    assert_same(blocked.values, torchs.values())
    assert_same(blocked.col_indices, torchs.col_indices())
    assert_same(blocked.crow_indices, torchs.crow_indices())


def test_blocks_that_do_not_fit_are_refused() -> None:
    weight, _ = layer(4, 6)
    with pytest.raises(ValueError, match="no 3 x 2 whole blocks"):
        to_blocked_csr(weight, torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="a part of a block"):
        block_mask(weight > 0, 2, 3)
    whole = to_blocked_csr(weight, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="lie in"):
        BlockedCSR(whole.values, whole.col_indices + 1, whole.crow_indices, 2)
    with pytest.raises(ValueError, match="rise from 0 to 4"):
        BlockedCSR(whole.values, whole.col_indices, whole.crow_indices[:2], 2)
    with pytest.raises(ValueError, match="twice"):
        BlockedCSR(whole.values, whole.col_indices * 0, whole.crow_indices, 2)
