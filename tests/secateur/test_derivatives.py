"""Gradients and Hessian-vector products of losses that come batch by batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.derivatives import (
    DerivativeMethod,
    Mean,
    hessian_vector_product,
    loss_gradients,
    mean_over_losses,
    stream_gradients,
)
from tests.contracts import assert_same


def test_means_are_taken_in_float32_at_least_and_leave_their_parts_alone() -> None:
    parts, mean = [torch.full((2,), 1.0 + step / 128).bfloat16() for step in (0, 1)], Mean()
    for part in parts:
        mean.add("a", part)
    found = mean.over(2)["a"]
    assert found.dtype == torch.float32 and found.tolist() == [1 + 1 / 256] * 2
    assert parts[0].tolist() == [1.0, 1.0]


def test_each_gradient_is_let_go_before_the_next_one_is_known() -> None:
    layers = [torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(4)]
    tensors = {str(index): layer for index, layer in enumerate(layers)}
    hidden = torch.ones(3, 8)
    for layer in layers:
        hidden = torch.tanh(hidden @ layer)
    expected = dict(zip(tensors, torch.autograd.grad(hidden.sum(), layers, retain_graph=True), strict=True))
    seen: dict[str, Tensor] = {}
    alive: list[weakref.ref[Tensor]] = []

    def take(name: str, gradient: Tensor) -> None:
        assert not any(one() is not None for one in alive)
        alive.append(weakref.ref(gradient))
        seen[name] = gradient.clone()

    assert list(stream_gradients([hidden.sum()], tensors, take)) == [0]
    assert list(seen) == ["3", "2", "1", "0"] and all(layer.grad is None for layer in layers)
    assert_same({name: seen[name] for name in expected}, expected)


def test_a_tensor_that_a_loss_does_not_use_gets_zeros_and_no_hook_stays() -> None:
    tensors = {"used": torch.ones(2, requires_grad=True), "unused": torch.ones(3, requires_grad=True)}
    for _ in range(2):
        (found,) = loss_gradients([tensors["used"].square().sum()], tensors)
        assert list(found) == list(tensors)
        assert found["used"].tolist() == [2.0, 2.0] and found["unused"].tolist() == [0.0] * 3
    tensors["used"].sum().backward()
    assert tensors["used"].grad is not None and tensors["used"].grad.tolist() == [1.0, 1.0]


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

    def measure(name: str, gradient: Tensor) -> Tensor:
        raise KeyError("stop")

    # The error is held, and its frames with it, so that only closing can have closed the generator.
    with pytest.raises(KeyError) as _held:
        mean_over_losses(losses(), {"w": w}, measure)
    assert closed == [True]
