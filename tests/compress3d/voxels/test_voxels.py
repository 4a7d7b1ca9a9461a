"""Sparse voxels: cells and features stay together, queries prune from coarse to fine, and completion mends exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compress3d.voxels.grid import LIMIT, SparseVoxels, neighbour_offsets
from compress3d.voxels.pruning import QueryPruning, complete
from compress3d.voxels.pyramid import VoxelPyramid, group_name
from compress3d.voxels.query import CosineQuery, NearQuery, QueryRelevance
from secateur.allocation import Budget, allocate_per_group
from secateur.importance import Magnitude, Random
from tests.contracts import (
    assert_deterministic,
    assert_exact_budget,
    assert_full_keep_changes_nothing,
    assert_mask_equals_cut,
    assert_mask_of_ones_changes_nothing,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)

SIDE = 12


def block(seed: int = 0, share: float = 0.4) -> SparseVoxels:
    """Some cells of a cube, below and above 0, in no order, with four features each."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cartesian_prod(*[torch.arange(-SIDE // 2, SIDE // 2)] * 3)
    chosen = torch.randperm(len(cells), generator=generator)[: int(share * len(cells))]
    return SparseVoxels(cells[chosen], torch.randn(len(chosen), 4, generator=generator))


def pyramid() -> VoxelPyramid:
    return VoxelPyramid.of(block(), 3)


def with_a_ball() -> tuple[VoxelPyramid, Tensor]:
    """A full cube whose cells in a ball have another colour, and which they are."""
    cells = torch.cartesian_prod(*[torch.arange(32)] * 3)
    inside = (cells.double() - 15.2).norm(dim=1) < 10
    colours = torch.where(inside[:, None], torch.tensor([1.0, 0.1, 0.1]), torch.tensor([0.1, 0.1, 1.0]))
    return VoxelPyramid.of(SparseVoxels(cells, colours), 3), inside


def dense(target: VoxelPyramid) -> Tensor:
    """All levels as full grids, one after the other."""
    grids = []
    for level, voxels in enumerate(target.levels):
        grid = torch.zeros(SIDE, SIDE, SIDE, 4)
        grid[tuple((voxels.coords + SIDE // 2).T)] = target.features(level)
        grids.append(grid)
    return torch.stack(grids)


def by_cell(voxels: SparseVoxels) -> dict[tuple[int, ...], list[float]]:
    return dict(zip(map(tuple, voxels.coords.tolist()), voxels.features.tolist(), strict=True))


def everything(target: VoxelPyramid) -> dict[str, Tensor]:
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}


def test_cells_are_found_in_their_rows_and_others_are_not() -> None:
    voxels = block()
    assert_same(voxels.find(voxels.coords), torch.arange(len(voxels)))
    cells = set(map(tuple, voxels.coords.tolist()))
    asked = torch.cartesian_prod(*[torch.arange(-SIDE, SIDE)] * 3)
    found = voxels.find(asked)
    assert [row >= 0 for row in found.tolist()] == [tuple(cell) in cells for cell in asked.tolist()]
    # A step over the edge of the range must not meet the key of another cell.
    edge = SparseVoxels(torch.tensor([[0, 0, LIMIT - 1], [0, 1, -LIMIT]]), torch.zeros(2, 1))
    assert edge.find(edge.coords + torch.tensor([0, 0, 1])).tolist() == [-1, -1]


def test_coarser_cells_hold_the_mean_of_what_lies_in_them() -> None:
    voxels = block()
    coarse, parents = voxels.coarser()
    inside: dict[tuple[int, ...], list[Tensor]] = {}
    for cell, feature in zip(voxels.coords.tolist(), voxels.features, strict=True):
        inside.setdefault(tuple(value // 2 for value in cell), []).append(feature)
    assert set(inside) == set(map(tuple, coarse.coords.tolist()))
    for cell, feature in zip(coarse.coords.tolist(), coarse.features, strict=True):
        torch.testing.assert_close(feature, torch.stack(inside[tuple(cell)]).mean(dim=0), rtol=1e-5, atol=1e-6)
    assert_same(coarse.coords[parents], torch.div(voxels.coords, 2, rounding_mode="floor"))


def test_masks_and_cuts_agree_on_every_level() -> None:
    target = pyramid()
    generator = torch.Generator().manual_seed(5)
    keep = {group.name: torch.rand(group.size, generator=generator) > 0.3 for group in target.groups()}
    assert_full_keep_changes_nothing(target)
    assert_mask_of_ones_changes_nothing(target, dense)
    assert_mask_equals_cut(target, keep, dense)
    small = target.cut(keep)
    assert [len(voxels) for voxels in small.levels] == [int(mask.sum()) for mask in target.nested(keep).values()]


def test_cells_and_features_stay_together_through_a_cut() -> None:
    target, inside = with_a_ball()
    small, _ = QueryPruning((0.2, 0.4, 0.6)).prune(target, NearQuery(torch.tensor([1.0, 0.1, 0.1]), 0.4))
    for before, after in zip(target.levels, small.levels, strict=True):
        known = by_cell(before)
        assert all(known[cell] == feature for cell, feature in by_cell(after).items())
    assert 0 < len(small.levels[0]) < len(target.levels[0]) and int(inside.sum()) > 0


def test_relevance_keeps_the_contracts_of_criteria() -> None:
    target, query = pyramid(), CosineQuery(torch.randn(2, 4, generator=torch.Generator().manual_seed(2)))
    scores = assert_deterministic(lambda: QueryRelevance().score(target, query))
    assert_scores_fit(scores, target.groups())
    for criterion in (Random(1), Magnitude()):
        assert_scores_fit(criterion.score(target), target.groups())
    budget = Budget(share=0.3, cost="bytes")
    assert_exact_budget(allocate_per_group(scores, target.groups(), budget), target.groups(), budget)

    def permuted(old: VoxelPyramid, order: Tensor) -> VoxelPyramid:
        return VoxelPyramid((old.levels[0].select(order), *old.levels[1:]), (old.parents[0][order], *old.parents[1:]))

    assert_permutes(lambda each: QueryRelevance().score(each, query), target, permuted, group_name(0), rtol=1e-6)


def test_a_threshold_of_zero_keeps_all_and_one_keeps_nothing() -> None:
    target, query = pyramid(), NearQuery(torch.ones(4) * 50, 1.0)
    small, record = QueryPruning((0.0, 0.0, 0.0), completion=0.5).prune(target, query)
    assert_same(dict(small.tensors()), dict(target.tensors()))
    assert record.kept == record.voxels == record.asked and record.completed == (0, 0, 0)
    small, record = QueryPruning((1.0, 1.0, 1.0)).prune(target, query)
    assert [len(voxels) for voxels in small.levels] == [0, 0, 0]
    assert record.asked == (0, 0, len(target.levels[2]))


def test_only_what_lies_in_kept_voxels_is_asked_about() -> None:
    target, _ = with_a_ball()
    asked: list[int] = []

    def counting(features: Tensor) -> Tensor:
        asked.append(len(features))
        return NearQuery(torch.tensor([1.0, 0.1, 0.1]), 0.3)(features)

    small, record = QueryPruning((0.05, 0.3, 0.6)).prune(target, counting)
    assert asked == list(record.asked[::-1]) and asked[0] == len(target.levels[2])
    # A full cube: eight voxels for each that stayed.
    assert [asked[1], asked[2]] == [8 * record.kept[2], 8 * record.kept[1]]
    assert record.kept == tuple(len(voxels) for voxels in small.levels)


def test_completion_puts_back_what_coarse_levels_took_by_mistake_and_nothing_else() -> None:
    target, inside = with_a_ball()
    query = NearQuery(torch.tensor([1.0, 0.1, 0.1]), 0.3)
    # So strict that coarse voxels on the ball's surface go, with the relevant fine voxels in them.
    strict = QueryPruning((0.9, 0.9, 0.5))
    assert 0 < int(strict.choose(target, query)[0]["level 0"].sum()) < int(inside.sum())
    keep, record = QueryPruning((0.9, 0.9, 0.5), completion=0.5, reach=8).choose(target, query)
    assert_same(keep["level 0"], inside)
    assert record.completed[0] > 0
    assert_same(dict(target.nested(keep)), dict(keep))
    assert sum(record.asked) < sum(record.voxels)


def test_completion_reaches_as_far_as_it_may_and_repeats_nothing() -> None:
    line = SparseVoxels(
        torch.stack([torch.arange(10)] + [torch.zeros(10, dtype=torch.int64)] * 2, dim=1), torch.ones(10, 1)
    )
    kept = torch.zeros(10, dtype=torch.bool)
    kept[[2, 4]] = True

    def all_but_six(features: Tensor) -> Tensor:
        return features[:, 0]

    line.features[6] = 0
    for reach, expected in ((1, [1, 3, 5]), (2, [0, 1, 3, 5]), (9, [0, 1, 3, 5])):
        added, asked = complete(line, kept, all_but_six, 0.5, reach)
        assert sorted(added.tolist()) == expected
        assert asked == len(expected) + (reach > 1)
    known = torch.zeros(10, dtype=torch.bool)
    known[[1, 3]] = True
    assert sorted(complete(line, kept, all_but_six, 0.5, 1, known)[0].tolist()) == [5]
    assert len(neighbour_offsets().unique(dim=0)) == 26


def test_a_text_finds_what_its_tokens_say() -> None:
    features = torch.eye(4)
    query = CosineQuery(torch.stack([features[0], features[2]]) * 7)
    assert [round(value, 2) for value in query(features).tolist()] == [0.99, 0.01, 0.99, 0.01]
    torch.testing.assert_close(query(features * 100), query(features))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SparseVoxels(torch.zeros(2, 3).long(), torch.zeros(2, 1)), "1 of 2 cells are there more than once"),
        (lambda: SparseVoxels(torch.tensor([[0, 0, LIMIT]]), torch.zeros(1, 1)), "1 of 1 cells are out of"),
        (lambda: SparseVoxels(torch.zeros(1, 3).long(), torch.full((1, 2), torch.nan)), "1 of 1 cells are not finite"),
        (lambda: SparseVoxels(torch.zeros(1, 3), torch.zeros(1, 1)), "int64"),
        (lambda: VoxelPyramid.of(block(), 0), "levels must be at least 1"),
        (lambda: QueryPruning((0.5, 2.0)), r"in \[0, 1\]"),
        (lambda: QueryPruning((0.5,)).prune(pyramid(), NearQuery(torch.ones(4), 1.0)), "3 thresholds, got 1"),
        (lambda: QueryPruning((0.5,) * 3).prune(pyramid(), lambda features: features[:, 0]), "are not"),
        (lambda: QueryPruning((0.5,) * 3).prune(pyramid(), lambda features: features), "a query must give"),
        (lambda: CosineQuery(torch.zeros(3)), "no direction"),
        (lambda: NearQuery(torch.ones(3), 0.0), "radius must be above 0"),
        (lambda: QueryRelevance().score(pyramid()), "needs a query"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        make()
