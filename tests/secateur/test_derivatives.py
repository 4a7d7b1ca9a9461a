"""Gradients of losses that come batch by batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from secateur.derivatives import Mean, loss_gradients, mean_over_losses, stream_gradients
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


def test_gradients_of_views_that_were_all_made_first_are_let_go_too() -> None:
    """Torch would run the views' derivatives last: all gradients of the layers would wait for them."""
    flat = {
        str(index): torch.randn(64, generator=torch.Generator().manual_seed(index)).requires_grad_()
        for index in range(4)
    }
    twice = flat["3"]
    views = [each.view(8, 8).T for each in flat.values()]
    hidden = torch.ones(3, 8)
    for view in views:
        hidden = torch.tanh(hidden @ view)
    loss = hidden.sum() + twice.square().sum()
    expected = dict(zip(flat, torch.autograd.grad(loss, list(flat.values()), retain_graph=True), strict=True))
    seen: dict[str, Tensor] = {}
    alive: list[weakref.ref[Tensor]] = []

    def take(name: str, gradient: Tensor) -> None:
        assert not any(one() is not None for one in alive)
        alive.append(weakref.ref(gradient.untyped_storage()))
        assert name not in seen
        seen[name] = gradient.clone()

    assert list(stream_gradients([loss], flat, take)) == [0]
    # What is used twice is known once both uses are.
    assert list(seen) == ["2", "1", "0", "3"]
    assert_same({name: seen[name] for name in expected}, expected)


def test_gradients_of_negative_losses() -> None:
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    found: dict[str, Tensor] = {}
    assert list(stream_gradients([w.square().sum()], {"w": w}, found.__setitem__, sign=-1.0)) == [0]
    assert found["w"].tolist() == [-2.0, -4.0]


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
