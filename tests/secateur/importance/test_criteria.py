"""The criteria that need no domain, on a toy target of two groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.importance import Magnitude, Normalized, Product, Random, RankMixture, Sampled
from secateur.maths import average_ranks, topk_mask
from secateur.units import Criterion, Keep, Member, Scores, UnitGroup
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit


@dataclass
class Toy:
    """A matrix whose rows are the units of one group, and a vector whose pairs are those of another."""

    matrix: Tensor
    vector: Tensor

    def tensors(self) -> Mapping[str, Tensor]:
        return {"matrix": self.matrix, "vector": self.vector}

    def groups(self) -> Sequence[UnitGroup]:
        pairs = torch.arange(len(self.vector)).reshape(-1, 2)
        return (
            UnitGroup("rows", len(self.matrix), (Member("matrix"),)),
            UnitGroup("pairs", len(pairs), (Member("vector", 0, pairs),)),
        )

    @contextmanager
    def masked(self, masks: Mapping[str, Tensor]) -> Iterator[None]:
        yield

    def cut(self, keep: Keep) -> Toy:
        return Toy(self.matrix[keep["rows"]], self.vector.reshape(-1, 2)[keep["pairs"]].flatten())


@dataclass(frozen=True)
class Given:
    """Scores that the test chose."""

    rows: tuple[float, ...]

    def score(self, target: object, calibration: object = None) -> Scores:
        return {"rows": torch.tensor(self.rows)}


def toy(rows: int = 12) -> Toy:
    generator = torch.Generator().manual_seed(0)
    return Toy(torch.randn(rows, 5, generator=generator), torch.randn(8, generator=generator))


def permuted(target: Toy, order: Tensor) -> Toy:
    return Toy(target.matrix[order], target.vector)


CRITERIA: list[Criterion] = [
    Random(),
    Magnitude(),
    Magnitude(power=2.0, params=("matrix", "vector")),
    Product((Magnitude(), Magnitude(2.0)), powers=(1.0, 0.5)),
    RankMixture((Magnitude(), Random(3))),
    Normalized(Magnitude()),
    Normalized(Magnitude(), "mean"),
    Sampled(Magnitude(), uniform=0.2, seed=5),
]


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_every_criterion_scores_every_unit_the_same_each_time(criterion: Criterion) -> None:
    target = toy()
    before = {name: tensor.clone() for name, tensor in target.tensors().items()}
    assert_scores_fit(assert_deterministic(lambda: criterion.score(target)), target.groups())
    assert_same(before, dict(target.tensors()))


@pytest.mark.parametrize("criterion", [Magnitude(2.0), Product((Magnitude(),)), RankMixture((Magnitude(),))], ids=repr)
def test_scores_permute_with_the_units(criterion: Criterion) -> None:
    assert_permutes(criterion.score, toy(), permuted, "rows")


def test_magnitude_is_the_sum_over_what_a_unit_owns() -> None:
    target = toy()
    scores = Magnitude().score(target)
    torch.testing.assert_close(scores["rows"], target.matrix.abs().sum(dim=1))
    torch.testing.assert_close(scores["pairs"], target.vector.abs().reshape(-1, 2).sum(dim=1))
    torch.testing.assert_close(Magnitude(2.0).score(target)["rows"], target.matrix.square().sum(dim=1))


def test_magnitude_of_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['bias'\]; the target has \['matrix', 'vector'\]"):
        Magnitude(params=("bias",)).score(toy())


def test_seeds_differ() -> None:
    first, second = (Random(seed).score(toy())["rows"] for seed in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[:4], Random(0).score(toy())["pairs"]), "groups do not share their numbers"


def test_product_multiplies_powers() -> None:
    scores = Product((Given((1.0, 4.0, 0.0)), Given((2.0, 9.0, 5.0))), powers=(2.0, 0.5)).score(toy(3))
    torch.testing.assert_close(scores["rows"], torch.tensor([2**0.5, 48.0, 0.0]).double())


def test_product_of_negative_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="1 below 0"):
        Product((Given((1.0, -4.0)),)).score(toy(2))


def test_rank_mixture_is_the_weighted_mean_of_ranks() -> None:
    first, second = Given((1.0, 1e9, -5.0)), Given((0.3, 0.1, 0.2))
    scores = RankMixture((first, second), weights=(3.0, 1.0)).score(toy(3))["rows"]
    expected = 0.75 * average_ranks(torch.tensor(first.rows)) + 0.25 * average_ranks(torch.tensor(second.rows))
    torch.testing.assert_close(scores, expected)


def test_a_rank_mixture_of_one_keeps_its_order() -> None:
    scores = Magnitude().score(toy())["rows"]
    mixed = RankMixture((Magnitude(),)).score(toy())["rows"]
    assert torch.equal(scores.argsort(), mixed.argsort())


def test_sampling_prefers_high_scores_and_never_draws_zero_early() -> None:
    rows = (0.0,) * 20 + (1.0,) * 20 + (10.0,) * 20
    drawn = torch.zeros(60)
    for seed in range(50):
        scores = Sampled(Given(rows), seed=seed).score(toy(60))["rows"]
        drawn += topk_mask(scores, 20)
    zero, low, high = drawn.reshape(3, 20).sum(dim=1).tolist()
    assert zero == 0 and 0 < low < high / 3


def test_the_uniform_share_gives_every_unit_a_chance() -> None:
    rows = (0.0,) * 30 + (1.0,) * 30
    drawn = 0
    for seed in range(40):
        scores = Sampled(Given(rows), uniform=1.0, seed=seed).score(toy(60))["rows"]
        drawn += int(topk_mask(scores, 20)[:30].sum())
    assert drawn == pytest.approx(400, rel=0.15)


def test_sampling_negative_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Sampled(Given((1.0, -1.0))).score(toy(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Product(()), "at least one"),
        (lambda: RankMixture((Random(),), weights=(1.0, 2.0)), "as many weights"),
        (lambda: RankMixture((Random(), Random()), weights=(0.0, 0.0)), "not all 0"),
        (lambda: Product((Random(),), powers=(0.0,)), "positive"),
        (lambda: Sampled(Random(), uniform=2.0), "uniform"),
    ],
)
def test_wrong_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("mean", (0.75, -0.75, 1.5)),
        ("sum", (0.25, -0.25, 0.5)),
        ("max", (0.5, -0.5, 1.0)),
        ("gaussian", (0.2672612, -1.3363062, 1.0690450)),
    ],
)
def test_normalized_scores_are_those_of_their_group(by: Any, expected: tuple[float, ...]) -> None:
    for scale in (1.0, 100.0):
        scores = Normalized(Given((2.0 * scale, -2.0 * scale, 4.0 * scale)), by).score(toy(3))["rows"]
        torch.testing.assert_close(scores, torch.tensor(expected))
    for flat in ((0.0, 0.0), (3.0, 3.0)) if by == "gaussian" else ((0.0, 0.0),):
        assert Normalized(Given(flat), by).score(toy(2))["rows"].tolist() == [0.0, 0.0]


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"by must be one of .*gaussian"):
        Normalized(Magnitude(), "median")  # type: ignore[arg-type]
