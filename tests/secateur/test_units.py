"""Folding element scores into units, and the check of a keep."""

from __future__ import annotations

import pytest
import torch

from secateur.units import Member, UnitGroup, UnitSums, WholeUnitSums, check_keep, fold


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
    sums.add("second", elements["second"])
    assert list(sums.take(partly=True)) == ["heads"]


def test_shares_of_single_elements_add_up_in_the_first_ones_place() -> None:
    groups = [UnitGroup("left", 3, (Member("w"),)), UnitGroup("right", 3, (Member("w"),))]
    alone, both = UnitSums(groups[:1]), UnitSums(groups)
    first = torch.ones(3)
    for sums in (alone, both):
        for share in (first.clone(), torch.full((3,), 2.0), torch.full((3,), 4.0, dtype=torch.float64)):
            sums.add("w", share)
    assert alone.take()["left"].tolist() == [7.0] * 3
    found = both.take()
    assert found["left"].tolist() == found["right"].tolist() == [7.0] * 3
    assert found["left"].dtype == torch.float64


def test_sums_of_a_group_are_handed_over_once_all_of_its_parameters_have_come() -> None:
    groups = [
        UnitGroup("both", 2, (Member("first"), Member("second", 1), Member("absent"))),
        UnitGroup("square", 2, (Member("second"), Member("second", 1))),
    ]
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen: list[tuple[str, list[float]]] = []
    sums = WholeUnitSums(groups, ["first", "second"], lambda group, values: seen.append((group, values.tolist())))
    for scale in (1, 10):
        sums.add("second", scale * second)
        assert seen.pop() == ("square", [scale * 7.0, scale * 13.0]) and not seen
        sums.add("first", scale * first)
        assert seen.pop() == ("both", [scale * 5.0, scale * 8.0]) and not seen
    with pytest.raises(ValueError, match=r"no element scores .* 'both'"):
        WholeUnitSums(groups, ["third"], print)


@pytest.mark.parametrize(
    "keep",
    [{}, {"g": torch.ones(2)}, {"g": torch.ones(3, dtype=torch.bool)}],
    ids=["missing", "not bool", "misshapen"],
)
def test_a_wrong_keep_is_rejected(keep: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="'g'"):
        check_keep(keep, [UnitGroup("g", 2, ())])
