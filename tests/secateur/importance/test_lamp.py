"""Layer-adaptive magnitude against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.granularity import Rows, Weights
from secateur.importance import Lamp, Magnitude, magnitude
from tests.contracts import assert_deterministic, assert_permutes, assert_scores_fit
from tests.secateur.importance.test_criteria import permuted, toy
from tests.secateur.toys import generator


def weights(*scales: float) -> dict[str, Tensor]:
    return {f"w{i}": s * torch.randn(6, 7, generator=generator(i), dtype=torch.float64) for i, s in enumerate(scales)}


def by_definition(values: Tensor) -> Tensor:
    squares = values.flatten().float().square().double()
    return torch.stack([square / squares[squares >= square].sum() for square in squares]).float()


def test_the_definition() -> None:
    each = weights(1.0, 3.0)
    scores = Lamp().score(Weights(each))
    for name, score in scores.items():
        torch.testing.assert_close(score, by_definition(each[name]))
        assert torch.equal(score.argsort(), each[name].float().flatten().square().argsort())


def test_the_largest_of_each_layer_scores_one_so_that_none_empties() -> None:
    target = Weights(weights(1e-6, 1.0, 1e6), min_keep=0)
    scores = Lamp().score(target)
    assert all(float(score.max()) == 1.0 for score in scores.values())
    keep = target.granularity.allocate(scores, target.groups(), Budget(limit=3))
    assert [int(mask.sum()) for mask in keep.values()] == [1, 1, 1]
    keep = target.granularity.allocate(Magnitude().score(target), target.groups(), Budget(limit=3))
    assert [int(mask.sum()) for mask in keep.values()] == [0, 0, 3]


def test_the_scale_of_a_layer_does_not_matter() -> None:
    first, second = Lamp().score(Weights(weights(1.0, 1.0))), Lamp().score(Weights(weights(1e-3, 1e4)))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=0)


def test_of_equal_weights_the_first_scores_higher() -> None:
    assert Lamp().score(Weights({"w": torch.ones(2, 2)}))["w"].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])


def test_a_layer_in_pieces_scores_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    some = torch.randn(1000, 1, generator=generator(3)).round(decimals=1)
    target = Weights({"w": torch.cat([some, torch.zeros(200, 1), some[:7]])})
    at_once = Lamp().score(target)["w"]
    monkeypatch.setattr(magnitude, "_PIECE", 50)
    torch.testing.assert_close(Lamp().score(target)["w"], at_once, rtol=1e-6, atol=0)


def test_a_layer_of_zeros_scores_zero() -> None:
    assert Lamp().score(Weights({"w": torch.zeros(2, 2)}))["w"].tolist() == [0, 0, 0, 0]


def test_a_module_is_its_layers_put_together() -> None:
    each = weights(1.0, 2.0, 0.5)
    scores = Lamp(scope=lambda name: "qk" if name in ("w0", "w1") else name).score(Weights(each))
    joint = Lamp().score(Weights({"qk": torch.cat([each["w0"], each["w1"]]), "w2": each["w2"]}))
    torch.testing.assert_close(torch.cat([scores["w0"], scores["w1"]]), joint["qk"])
    torch.testing.assert_close(scores["w2"], joint["w2"])
    one_by_one = Lamp(scope=lambda name: name).score(Weights(each))
    assert all(torch.equal(one_by_one[name], score) for name, score in Lamp().score(Weights(each)).items())


def test_larger_units_are_layers_of_energies() -> None:
    each = weights(1.0)
    energies = each["w0"].square().sum(dim=1)
    expected = torch.stack([energy / energies[energies >= energy].sum() for energy in energies])
    torch.testing.assert_close(Lamp().score(Weights(each, Rows()))["w0"], expected.float(), rtol=1e-5, atol=0)


def test_the_contracts_of_criteria() -> None:
    target = toy()
    assert_scores_fit(assert_deterministic(lambda: Lamp().score(target)), target.groups())
    assert_permutes(Lamp().score, target, permuted, "rows", rtol=1e-6)


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameters \['bias'\]"):
        Lamp(params=("bias",)).score(toy())
