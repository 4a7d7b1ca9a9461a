"""Layers scored by forward passes, and budgets split over them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.ecoflap import ZerothOrder, layer_counts
from secateur.oneshot import LayerWanda
from secateur.patterns import PerRow, Unstructured
from secateur.solvers.gram import Gram
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import LossOf, Perceptron, Weights, generator, regression


def test_on_a_linear_loss_the_score_is_the_norm_of_the_gradient() -> None:
    slope = torch.randn(30, generator=generator(), dtype=torch.float64)
    target = Weights(torch.zeros(30, dtype=torch.float64))
    objective = LossOf((lambda weights: slope @ weights.weights,))
    score = ZerothOrder(probes=4000).layers(target, objective, ("weights",))["weights"]
    assert score == pytest.approx(math.sqrt(2 / math.pi) * float(slope.norm()), rel=0.05)


def test_weights_and_graphs_are_left_alone() -> None:
    model, data = Perceptron.random(5, 6, 2), regression()
    before = {name: value.clone() for name, value in model.tensors().items()}
    seen = []

    def loss(target: Perceptron) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return (target(data.inputs) - data.outputs).square().mean()

    assert_deterministic(lambda: ZerothOrder(probes=2).layers(model, LossOf((loss,)), ("first", "second")))
    assert_same(before, dict(model.tensors()))
    assert not any(seen)
    with pytest.raises(RuntimeError, match="failed"):
        ZerothOrder().layers(model, LossOf((_failing,)), ("first",))
    assert_same(before, dict(model.tensors()))


def _failing(target: Perceptron) -> torch.Tensor:
    raise RuntimeError("failed")


@given(
    sizes=st.lists(st.integers(1, 500), min_size=1, max_size=5),
    scores=st.lists(st.floats(0, 10), min_size=5, max_size=5),
    keep=st.floats(0, 1),
    spread=st.floats(0, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_the_total_is_exact_and_bounds_hold(sizes: list[int], scores: list[float], keep: float, spread: float) -> None:
    named = {f"l{index}": size for index, size in enumerate(sizes)}
    counts = layer_counts(dict(zip(named, scores, strict=False)), named, keep, spread)
    assert sum(counts.values()) == math.floor(keep * sum(sizes) * (1 + 1e-12))
    for name, count in counts.items():
        assert 0 <= count <= named[name]
        assert count >= math.floor(named[name] * max(0.0, keep - spread)) - 1


def test_more_important_layers_keep_more_and_equal_ones_the_same() -> None:
    sizes = {"a": 100, "b": 100, "c": 100}
    assert layer_counts({"a": 1.0, "b": 1.0, "c": 1.0}, sizes, 0.5) == {"a": 50, "b": 50, "c": 50}
    counts = layer_counts({"a": 3.0, "b": 1.0, "c": 0.0}, sizes, 0.5)
    assert counts["a"] > counts["b"] > counts["c"] == 40
    assert layer_counts({"a": 9.0, "b": 0.0, "c": 1.0}, sizes, 0.5, spread=0.0) == {"a": 50, "b": 50, "c": 50}
    assert layer_counts({"a": 0.0, "b": 0.0, "c": 0.0}, sizes, 0.5) == {"a": 50, "b": 50, "c": 50}
    assert layer_counts({"a": 5.0, "b": 0.0, "c": 1.0}, sizes, 1.0) == sizes


def test_equal_scores_are_uniform_wanda() -> None:
    weight = torch.randn(8, 10, generator=generator())
    gram = Gram(10).add(torch.randn(40, 10, generator=generator(1)))
    count = layer_counts({"a": 2.0, "b": 2.0}, {"a": 80, "b": 80}, 0.5)["a"]
    assert_same(
        LayerWanda(PerRow(count / 80)).prune(weight, gram).keep, LayerWanda(PerRow(0.5)).prune(weight, gram).keep
    )
    assert int(LayerWanda(Unstructured(37 / 80)).prune(weight, gram).keep.sum()) == 37


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="same layers"):
        layer_counts({"a": 1.0}, {"b": 3}, 0.5)
    with pytest.raises(ValueError, match="keep must be"):
        layer_counts({"a": 1.0}, {"a": 3}, 1.5)
    with pytest.raises(ValueError, match="finite"):
        layer_counts({"a": math.nan}, {"a": 3}, 0.5)
    with pytest.raises(ValueError, match="probes"):
        ZerothOrder(probes=0)
    with pytest.raises(ValueError, match="no parameters"):
        ZerothOrder().layers(Perceptron.random(5, 6, 2), regression(), ("third",))
    with pytest.raises(ValueError, match="not finite where 'first'"):
        broken = LossOf((lambda target: target.first.sum() * math.nan,))
        ZerothOrder().layers(Perceptron.random(5, 6, 2), broken, ("first",))
