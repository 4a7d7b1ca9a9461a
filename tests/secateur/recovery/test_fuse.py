"""Fused units do the work of those that went."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.importance import Magnitude
from secateur.maths import topk_mask
from secateur.recovery.fuse import IntraFusion
from secateur.units import Keep, Member, UnitGroup
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import Perceptron, Weights, generator


def duplicated(noise: float = 0.0, hidden: int = 6) -> Perceptron:
    """Each neuron twice, the copies with noise, in a shuffled order."""
    half = Perceptron.random(4, hidden, 3)
    order = torch.randperm(2 * hidden, generator=generator(1))
    twice = half.permuted(torch.arange(2 * hidden)[order] % hidden)

    def noisy(value: Tensor, seed: int) -> Tensor:
        return value + noise * torch.randn(value.shape, generator=generator(seed), dtype=torch.float64)

    return replace(twice, first=noisy(twice.first, 2), bias=noisy(twice.bias, 3), second=noisy(twice.second, 4))


def one_of_each(model: Perceptron, hidden: int = 6) -> Keep:
    order = torch.randperm(2 * hidden, generator=generator(1)) % hidden
    first = [int((order == unit).nonzero()[0]) for unit in range(hidden)]
    kept = torch.zeros(2 * hidden, dtype=torch.bool)
    kept[first] = True
    return {"layer.hidden": kept}


INPUTS = torch.randn(50, 4, generator=generator(9), dtype=torch.float64)


def test_duplicates_merge_without_changing_the_function() -> None:
    model = duplicated()
    small = IntraFusion().cut(model, one_of_each(model))
    assert len(small.bias) == 6
    torch.testing.assert_close(small(INPUTS), model(INPUTS))


def test_the_released_codes_sum_is_a_factor_off_before_normalisation() -> None:
    model = duplicated()
    keep = one_of_each(model)
    mean, total = (IntraFusion(producers=kind).cut(model, keep) for kind in ("mean", "sum"))  # type: ignore[arg-type]
    torch.testing.assert_close(total.first, 2 * mean.first)
    assert_same(total.second, mean.second)


def test_noisy_duplicates_lose_less_than_plain_pruning() -> None:
    for noise in (0.05, 0.2):
        model = duplicated(noise)
        keep = one_of_each(model)
        fused, plain = IntraFusion().cut(model, keep), model.cut(keep)
        dense = model(INPUTS)
        assert (fused(INPUTS) - dense).square().mean() < 0.3 * (plain(INPUTS) - dense).square().mean()


def test_half_of_a_random_network_by_any_masses() -> None:
    model = Perceptron.random(4, 12, 3)
    scores = Magnitude(2.0).score(model)
    keep = {"layer.hidden": topk_mask(scores["layer.hidden"], 7)}
    for fusion in (IntraFusion(), IntraFusion(p=2.0, sources="importance", targets="importance")):
        before = {name: value.clone() for name, value in model.tensors().items()}
        small = assert_deterministic(lambda fusion=fusion: dict(fusion.cut(model, keep, scores).tensors()))
        assert small["first"].shape == (7, 4) and small["second"].shape == (3, 7)
        # What all units sent to the outputs together, the kept ones send now.
        torch.testing.assert_close(small["second"].sum(1), model.second.sum(1))
        assert_same(before, dict(model.tensors()))


def test_the_maps_columns_sum_to_one_and_its_rows_to_the_masses() -> None:
    model = Perceptron.random(4, 9, 2)
    (group,) = model.groups()
    kept = topk_mask(torch.arange(9.0), 3)
    plan = IntraFusion().map(model.tensors(), group, kept, None)
    torch.testing.assert_close(plan.sum(0), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((3,), 3.0, dtype=torch.float64))


def test_keeping_everything_changes_nothing_and_order_does_not_matter() -> None:
    model = Perceptron.random(4, 8, 3)
    everything = {"layer.hidden": torch.ones(8, dtype=torch.bool)}
    assert_same(dict(IntraFusion().cut(model, everything).tensors()), dict(model.tensors()))
    kept = topk_mask(torch.rand(8, generator=generator(3)), 5)
    order = torch.randperm(8, generator=generator(4))
    small = IntraFusion().cut(model, {"layer.hidden": kept})
    again = IntraFusion().cut(model.permuted(order), {"layer.hidden": kept[order]})
    torch.testing.assert_close(again(INPUTS), small(INPUTS))


def test_units_of_several_rows_are_fused_row_by_row() -> None:
    target = Weights(torch.tensor([1.0, 2.0, 1.0, 2.0, 5.0, -5.0]), per_unit=2)
    kept = torch.tensor([True, False, True])
    small = IntraFusion().cut(target, {"blocks": kept})
    plan = IntraFusion().map(target.tensors(), target.groups()[0], kept, None)
    means = plan / plan.sum(1, keepdim=True)
    torch.testing.assert_close(small.weights.reshape(2, 2).double(), means @ target.weights.reshape(3, 2).double())


def test_wrong_fusions_are_refused() -> None:
    model = Perceptron.random(4, 6, 2)
    nothing = {"layer.hidden": torch.zeros(6, dtype=torch.bool)}
    with pytest.raises(ValueError, match="keeps nothing"):
        IntraFusion().cut(model, nothing)
    keep = {"layer.hidden": topk_mask(torch.rand(6, generator=generator()), 3)}
    with pytest.raises(ValueError, match="need 6 scores"):
        IntraFusion(sources="importance").cut(model, keep)
    with pytest.raises(ValueError, match="finite scores above 0"):
        IntraFusion(sources="importance").cut(model, keep, {"layer.hidden": torch.zeros(6)})
    with pytest.raises(ValueError, match="targets must be one of"):
        IntraFusion(targets="radical")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="p must be above 0"):
        IntraFusion(p=0)
    group = UnitGroup("g", 5, (Member("first"),))
    with pytest.raises((ValueError, IndexError)):
        IntraFusion().map(model.tensors(), group, topk_mask(torch.arange(5.0), 2), None)
