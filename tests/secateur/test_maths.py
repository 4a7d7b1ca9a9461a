"""Top-k with ties, ranks, sampling without replacement, straight-through gradients and Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.maths import (
    DerivativeMethod,
    average_ranks,
    gumbel_scores,
    hessian_vector_product,
    mean_over_losses,
    mean_tensors,
    order_by_score,
    rademacher,
    sample_without_replacement,
    straight_through,
    topk_mask,
)
from tests.contracts import assert_deterministic, assert_same

# Few distinct values, so that ties are the rule.
TIED = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0, float("inf"), float("-inf")]), max_size=30)


@given(TIED, st.data())
@settings(max_examples=60, deadline=None)
def test_topk_keeps_exactly_k_of_the_best_and_the_lower_index_among_ties(
    values: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:k]
    mask = topk_mask(torch.tensor(values), k)
    assert mask.nonzero()[:, 0].tolist() == sorted(expected)


@given(TIED)
@settings(max_examples=40, deadline=None)
def test_order_is_from_best_to_worst_with_ties_by_index(values: list[float]) -> None:
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))
    assert order_by_score(torch.tensor(values)).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_topk_of_any_dtype(dtype: torch.dtype) -> None:
    assert topk_mask(torch.tensor([1, 3, 2, 3]).to(dtype), 3).tolist() == [False, True, True, True]


def test_nan_is_rejected_with_a_count() -> None:
    with pytest.raises(ValueError, match="2 NaN among 4 values, the first at index 1"):
        topk_mask(torch.tensor([0.0, torch.nan, torch.nan, 1.0]), 2)


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range_is_rejected(k: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 3"):
        topk_mask(torch.ones(3), k)


def test_ranks_share_ties_and_do_not_depend_on_scale() -> None:
    scores = torch.tensor([10.0, -1.0, 10.0, 5.0])
    ranks = average_ranks(scores)
    torch.testing.assert_close(ranks, torch.tensor([3.0, 0.5, 3.0, 1.5]).double() / 4)
    assert_same(ranks, average_ranks(scores.exp()))
    assert len(average_ranks(torch.zeros(0))) == 0


def test_sampling_draws_exactly_k_and_never_the_impossible() -> None:
    probabilities = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0])
    generator = torch.Generator().manual_seed(0)
    for k in range(4):
        mask = sample_without_replacement(probabilities, k, generator)
        assert int(mask.sum()) == k and not bool(mask[[0, 3]].any())
    with pytest.raises(ValueError, match="only 3 of 5"):
        sample_without_replacement(probabilities, 4, generator)


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_probabilities_must_be_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        gumbel_scores(torch.tensor([1.0, bad]), torch.Generator())


def test_sampling_follows_successive_draws() -> None:
    """The exact distribution of two draws without replacement, from 20,000 samples."""
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([sample_without_replacement(p, 2, generator) for _ in range(20_000)])
    left_out = 1 - draws.double().mean(dim=0)
    pairs = {0: (1, 2), 1: (0, 2), 2: (0, 1)}
    expected = [float(p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])) for i, j in pairs.values()]
    torch.testing.assert_close(left_out, torch.tensor(expected).double(), atol=0.015, rtol=0)


def test_sampling_is_determined_by_its_generator() -> None:
    p = torch.rand(100, generator=torch.Generator().manual_seed(1))
    assert_deterministic(lambda: sample_without_replacement(p, 30, torch.Generator().manual_seed(7)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_straight_through_has_the_values_of_one_and_the_gradient_of_the_other(dtype: torch.dtype) -> None:
    x = torch.linspace(-6, 6, 101).to(dtype).requires_grad_()
    hard, soft = (x > 0).to(dtype), torch.sigmoid(x)
    out = straight_through(hard, soft)
    assert torch.equal(out, hard)
    (gradient,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad(soft.sum(), x)
    assert torch.equal(gradient, expected)


def test_rademacher_signs_are_fair_and_come_from_the_generator() -> None:
    signs = assert_deterministic(lambda: rademacher(torch.zeros(100, 100), torch.Generator().manual_seed(3)))
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and abs(float(signs.mean())) < 0.03


def test_means_are_taken_in_float32_at_least_and_leave_their_parts_alone() -> None:
    parts = [{"a": torch.full((2,), 1.0 + step / 128).bfloat16()} for step in (0, 1)]
    mean = mean_tensors(parts)["a"]
    assert mean.dtype == torch.float32 and mean.tolist() == [1 + 1 / 256] * 2
    assert parts[0]["a"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="nothing"):
        mean_tensors([])


def curved(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor], Callable[[Mapping[str, Tensor]], Tensor]]:
    """Parameters of very different sizes, vectors, and a smooth loss in which they interact."""
    generator = torch.Generator().manual_seed(0)
    scales = {"large": 40.0, "small": 0.02, "zero": 0.0}
    tensors = {
        name: (scale * torch.randn(4, 3, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for name, scale in scales.items()
    }
    vectors = {
        name: ((scale or 1.0) * torch.randn(4, 3, generator=generator, dtype=torch.float64)).to(dtype)
        for name, scale in scales.items()
    }

    def loss(at: Mapping[str, Tensor]) -> Tensor:
        mixed = at["large"] / 40 + torch.sin(at["small"] * 50) + at["zero"]
        return (torch.tanh(mixed) ** 2).sum() + (mixed[:2] * mixed[2:]).sum() ** 2

    return tensors, vectors, loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hessian_vector_products_agree_with_the_dense_hessian(dtype: torch.dtype) -> None:
    tensors, vectors, loss = curved(dtype)
    names = list(tensors)

    def joint(flat: Tensor) -> Tensor:
        return loss(dict(zip(names, flat.reshape(3, 4, 3), strict=True)))

    flat = torch.stack([tensors[name].detach().double() for name in names]).flatten()
    dense = torch.autograd.functional.hessian(joint, flat)
    expected = (dense @ torch.stack([vectors[name].double() for name in names]).flatten()).reshape(3, 4, 3)
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    tolerances = {torch.float32: (1e-5, 2e-3), torch.float64: (1e-12, 1e-7)}[dtype]
    methods: tuple[DerivativeMethod, ...] = ("double_backward", "central_differences")
    for method, tolerance in zip(methods, tolerances, strict=True):
        products = hessian_vector_product(lambda: [loss(tensors), loss(tensors)], tensors, vectors, method)
        for name, exact in zip(names, expected, strict=True):
            assert float((products[name].double() - exact).norm() / exact.norm()) < tolerance, (method, name)
            assert not products[name].requires_grad and tensors[name].grad is None
        assert_same(before, {name: tensor.detach() for name, tensor in tensors.items()})


def test_differences_give_tensors_back_bit_for_bit_even_after_an_error() -> None:
    tensors = {"w": torch.tensor([1e-30, 3.0, -0.0, 1e30]).requires_grad_()}
    before = tensors["w"].detach().clone()
    seen = []

    def fails() -> Iterator[Tensor]:
        seen.append(tensors["w"].detach().clone())
        yield tensors["w"].sum() * (torch.inf if len(seen) == 2 else 1.0)

    with pytest.raises(ValueError, match="batch 0 must be one finite number"):
        hessian_vector_product(fails, tensors, {"w": torch.ones(4)}, "central_differences")
    assert len(seen) == 2 and not torch.equal(seen[0], before)
    assert_same(tensors["w"].detach(), before)


@pytest.mark.parametrize("method", ["double_backward", "central_differences"])
def test_no_curvature_and_no_direction_give_zeros(method: DerivativeMethod) -> None:
    tensors = {"w": torch.tensor([1.0, 2.0]).requires_grad_(), "unused": torch.ones(2).requires_grad_()}
    ones = {name: torch.ones(2) for name in tensors}
    linear = hessian_vector_product(lambda: [3 * tensors["w"].sum()], tensors, ones, method)
    nowhere = {name: torch.zeros(2) for name in tensors}
    still = hessian_vector_product(lambda: [tensors["w"].square().sum()], tensors, nowhere, method)
    for products in (linear, still):
        assert all(not products[name].any() for name in tensors)


def test_operations_without_a_second_derivative_are_refused_by_name() -> None:
    q = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def distances() -> list[Tensor]:
        return [torch.pdist(q).square().sum()]

    def custom() -> list[Tensor]:
        return [Doubled.apply(q).square().sum()]

    for losses, what in ((distances, "_pdist_backward"), (custom, "DoubledBackward")):
        with pytest.raises(ValueError, match=rf"{what}.*central_differences"):
            hessian_vector_product(losses, {"q": q}, {"q": torch.ones_like(q)})
    products = hessian_vector_product(custom, {"q": q}, {"q": torch.ones_like(q)}, "central_differences")["q"]
    torch.testing.assert_close(products, torch.full_like(q, 8.0), rtol=1e-3, atol=0)


def test_attention_is_differentiated_twice_whatever_its_kernel() -> None:
    q = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    v = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def fused(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, 2 * x).square().sum()

    def plain(x: Tensor) -> Tensor:
        return ((x @ x.mT / 3**0.5).softmax(-1) @ (2 * x)).square().sum()

    product = hessian_vector_product(lambda: [fused(q)], {"q": q}, {"q": v})["q"]
    torch.testing.assert_close(product, torch.autograd.functional.hvp(plain, q, v)[1])


class Doubled(torch.autograd.Function):
    """2 x, with a backward pass that leaves torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> Tensor:
        return torch.from_numpy(2 * incoming.detach().numpy())


def test_a_tensor_must_not_be_given_twice() -> None:
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="distinct"):
        hessian_vector_product(lambda: [w.square().sum()], {"a": w, "b": w}, {"a": w, "b": w})


def test_contexts_of_the_losses_are_closed_when_what_is_measured_fails() -> None:
    w = torch.ones(2, requires_grad=True)
    closed = []

    def losses() -> Iterator[Tensor]:
        try:
            yield w.sum()
            yield w.sum()
        finally:
            closed.append(True)

    def measure(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        raise KeyError("stop")

    # The error is held, and its frames with it, so that only closing can have closed the generator.
    with pytest.raises(KeyError) as _held:
        mean_over_losses(losses(), {"w": w}, measure)
    assert closed == [True]
