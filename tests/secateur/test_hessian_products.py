"""Hessian-vector products of losses that come batch by batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.hessian_products import DerivativeMethod, hessian_vector_product, stream_hessian_vector_products
from tests.contracts import assert_same


def test_each_share_is_let_go_before_the_next_one_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(index): torch.randn(8, 8, generator=generator, dtype=torch.float64).requires_grad_() for index in range(4)
    }
    vectors = {name: torch.randn(8, 8, generator=generator, dtype=torch.float64) for name in tensors}

    def loss() -> Tensor:
        hidden = torch.ones(3, 8, dtype=torch.float64)
        for layer in tensors.values():
            hidden = torch.tanh(torch.nn.functional.linear(hidden, layer))
        return hidden.sum()

    gradients = torch.autograd.grad(loss(), list(tensors.values()), create_graph=True)
    product = torch.stack([(g * v).sum() for g, v in zip(gradients, vectors.values(), strict=True)]).sum()
    expected = torch.autograd.grad(product, list(tensors.values()))
    totals = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    shares: list[str] = []
    alive: list[weakref.ref[Any]] = []

    def take(name: str, share: Tensor, value: Tensor) -> None:
        assert not any(one() is not None for one in alive)
        alive.append(weakref.ref(share.untyped_storage()))
        assert_same(value, tensors[name].detach())
        shares.append(name)
        totals[name] += share

    assert stream_hessian_vector_products(lambda: [loss(), loss()], tensors, vectors, take) == 2
    # Layer 0 sees an input, which has no derivative: nothing comes back through it.
    assert {name: shares.count(name) for name in tensors} == {"0": 2, "1": 4, "2": 4, "3": 4}
    for total, exact in zip(totals.values(), expected, strict=True):
        torch.testing.assert_close(total / 2, exact)


def test_differences_hand_over_the_tensors_own_values_and_ask_for_each_vector_before_it_is_let_go() -> None:
    tensors = {name: torch.tensor([1.0, -2.0]).double().requires_grad_() for name in "ab"}
    vectors = {name: torch.tensor([1.0, 0.5]).double() for name in tensors}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    moved, total = [], {name: torch.zeros(2).double() for name in tensors}

    def take(name: str, share: Tensor, value: Tensor) -> None:
        assert_same(value, before[name])
        moved.append(not torch.equal(tensors[name].detach(), before[name]))
        total[name] += share

    def losses() -> list[Tensor]:
        return [(tensors["a"] ** 3).sum() + (tensors["a"] * tensors["b"]).sum()]

    divisor = stream_hessian_vector_products(losses, tensors, vectors, take, "central_differences", vectors.pop)
    assert not vectors and all(moved)
    torch.testing.assert_close(total["a"] / divisor, torch.tensor([7.0, -5.5]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(total["b"] / divisor, torch.tensor([1.0, 0.5]).double(), rtol=1e-7, atol=0)


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
