"""Folding element scores into units, and the check of a keep."""

from __future__ import annotations

import pytest
import torch

from secateur.units import Member, UnitGroup, check_keep, fold


def test_fold_sums_the_rows_that_a_unit_owns_over_all_members() -> None:
    first, second = torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(2, 4)
    rows = torch.tensor([[0, 1], [2, 3]])
    group = UnitGroup("heads", 2, (Member("first", 0, rows), Member("second", 1, rows), Member("absent", 0)))
    expected = [first[:2].sum() + second[:, :2].sum(), first[2:].sum() + second[:, 2:].sum()]
    assert fold({"first": first, "second": second}, group).tolist() == expected


def test_fold_rejects_scores_that_do_not_fit() -> None:
    group = UnitGroup("g", 2, (Member("w"),))
    with pytest.raises(ValueError, match="2 units"):
        fold({"w": torch.ones(3)}, group)
    with pytest.raises(ValueError, match="no element scores"):
        fold({}, group)


@pytest.mark.parametrize(
    "keep",
    [{}, {"g": torch.ones(2)}, {"g": torch.ones(3, dtype=torch.bool)}],
    ids=["missing", "not bool", "misshapen"],
)
def test_a_wrong_keep_is_rejected(keep: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="'g'"):
        check_keep(keep, [UnitGroup("g", 2, ())])
