"""Folding element scores into units, and the check of a keep."""

from __future__ import annotations

import pytest
import torch

from secateur.units import Member, UnitGroup, UnitSums, check_keep, fold


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


def test_sums_that_come_one_parameter_at_a_time_are_the_fold() -> None:
    rows = torch.tensor([[0, 1], [2, 3]])
    groups = [
        UnitGroup("heads", 2, (Member("first", 0, rows), Member("second", 1, rows))),
        UnitGroup("rows", 4, (Member("first"),)),
    ]
    elements = {"first": torch.randn(4, 3, 2), "second": torch.randn(2, 4), "of no unit": torch.ones(1)}
    sums = UnitSums(groups)
    for _ in range(2):
        for name, values in elements.items():
            sums.add(name, values)
        found = sums.take()
        assert list(found) == ["heads", "rows"]
        for group in groups:
            torch.testing.assert_close(found[group.name], fold(elements, group))
    with pytest.raises(ValueError, match=r"no element scores .* 'heads'"):
        sums.take()


@pytest.mark.parametrize(
    "keep",
    [{}, {"g": torch.ones(2)}, {"g": torch.ones(3, dtype=torch.bool)}],
    ids=["missing", "not bool", "misshapen"],
)
def test_a_wrong_keep_is_rejected(keep: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="'g'"):
        check_keep(keep, [UnitGroup("g", 2, ())])
