"""Second-order criteria against dense Hessians."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.importance import Fisher, HessianDiagonal, HessianProduct, HessianTrace, MaskHessian, Taylor
from secateur.units import Criterion
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit
from tests.secateur.toys import (
    Batches,
    CubedOnce,
    LossOf,
    Perceptron,
    Weights,
    generator,
    quadratic,
    random_quadratic,
    rank_correlation,
    regression,
    removal_changes,
)

CRITERIA: list[Criterion] = [
    Fisher(),
    Fisher(params=("second",)),
    HessianDiagonal(3),
    HessianDiagonal(3, absolute=True, method="central_differences"),
    HessianProduct(),
    HessianProduct("central_differences", params=("first", "bias")),
    HessianTrace(HessianDiagonal(2, seed=5)),
    MaskHessian(3),
    MaskHessian(3, method="central_differences"),
]


def network(hidden: int = 7) -> Perceptron:
    return Perceptron.random(5, hidden, 2)


def dense_hessian(target: Perceptron, data: Batches) -> Tensor:
    """Of the mean loss, over first, bias and second, flattened in this order."""
    shapes = [target.first.shape, target.bias.shape, target.second.shape]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        first, bias, second = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        return torch.stack(list(data.losses(replace(target, first=first, bias=bias, second=second)))).mean()

    hessian = torch.autograd.functional.hessian(loss, flat(target))
    assert isinstance(hessian, Tensor)
    return hessian


def flat(target: Perceptron) -> Tensor:
    return torch.cat([target.first.flatten(), target.bias, target.second.flatten()])


def folded(target: Perceptron, elements: Tensor) -> Tensor:
    """Sums over what each neuron owns of values in the order of `flat`."""
    first, bias, second = elements.split([target.first.numel(), len(target.bias), target.second.numel()])
    return first.reshape(target.first.shape).sum(dim=1) + bias + second.reshape(target.second.shape).sum(dim=0)


def mask_hessian(target: Perceptron, data: Batches) -> Tensor:
    def loss(mask: Tensor) -> Tensor:
        with target.masked({"layer.hidden": mask}):
            return torch.stack(list(data.losses(target))).mean()

    hessian = torch.autograd.functional.hessian(loss, torch.ones(len(target.bias), dtype=torch.float64))
    assert isinstance(hessian, Tensor)
    return hessian


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_every_criterion_scores_the_same_each_time_and_leaves_the_target_as_it_was(criterion: Criterion) -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.tensors().items()}
    scores = assert_deterministic(lambda: criterion.score(target, regression()))
    assert_scores_fit(scores, target.groups())
    assert_same(before, dict(target.tensors()))
    assert not any(tensor.requires_grad for tensor in target.tensors().values()) and target.mask is None


@pytest.mark.parametrize("criterion", [Fisher(), HessianProduct(), HessianProduct("central_differences")], ids=repr)
def test_scores_permute_with_the_units(criterion: Criterion) -> None:
    assert_permutes(
        lambda target: criterion.score(target, regression()), network(), Perceptron.permuted, "layer.hidden", rtol=1e-5
    )


@pytest.mark.parametrize("criterion", [HessianDiagonal(1), HessianTrace(HessianDiagonal(1)), MaskHessian(1)], ids=repr)
def test_probed_scores_permute_with_the_units_where_units_do_not_interact(criterion: Criterion) -> None:
    """One probe is exact there, whatever its signs; elsewhere the permuted probes are others, and so is their noise."""

    def separable(target: Weights) -> Tensor:
        return (target.effective() ** 4).sum()

    target = Weights(torch.randn(9, generator=generator(2), dtype=torch.float64))
    assert_permutes(
        lambda each: criterion.score(each, LossOf((separable,))), target, Weights.permuted, "blocks", rtol=1e-9
    )


def test_different_seeds_give_different_probes() -> None:
    first, second = (HessianDiagonal(1, seed).score(network(), regression())["layer.hidden"] for seed in (0, 1))
    assert not torch.allclose(first, second)


def test_fisher_is_the_mean_squared_gradient_times_the_squared_weight() -> None:
    target, data = network(), regression(size=1)
    per_sample = []
    for name in ("first", "bias", "second"):
        getattr(target, name).requires_grad_(True)
    for loss in data.losses(target):
        parts = torch.autograd.grad(loss, [target.first, target.bias, target.second])
        per_sample.append(torch.cat([part.flatten() for part in parts]))
    expected = 0.5 * torch.stack(per_sample).square().mean(dim=0) * flat(target).detach().square()
    torch.testing.assert_close(Fisher().score(target, data)["layer.hidden"], folded(target, expected))


def test_fisher_of_single_weights_is_half_of_squared_taylor() -> None:
    """Fisher pruning of a unit (Theis et al.) squares the sum; over units of one element that is the diagonal."""
    hessian, minimum = random_quadratic(8)
    target, loss = Weights(torch.randn(8, generator=generator(1), dtype=torch.float64)), quadratic(hessian, minimum)
    fisher, taylor = Fisher().score(target, loss)["blocks"], Taylor("square").score(target, loss)["blocks"]
    torch.testing.assert_close(fisher, 0.5 * taylor)


@pytest.mark.parametrize("method", ["double_backward", "central_differences"])
def test_one_probe_is_exact_for_a_diagonal_hessian(method: str) -> None:
    diagonal = random_quadratic(12)[0].diag()
    target = Weights(torch.randn(12, generator=generator(3), dtype=torch.float64), 3)
    loss = quadratic(diagonal.diag(), torch.zeros(12, dtype=torch.float64))
    hessian = HessianDiagonal(1, method=method)  # type: ignore[arg-type]
    torch.testing.assert_close(hessian.diagonal(target, loss)["weights"], diagonal, rtol=1e-8, atol=0)
    damage = (0.5 * diagonal * target.weights.square()).reshape(4, 3).sum(dim=1)
    torch.testing.assert_close(hessian.score(target, loss)["blocks"], damage, rtol=1e-8, atol=0)
    trace = diagonal.reshape(4, 3).mean(dim=1) / 2 * target.weights.square().reshape(4, 3).sum(dim=1)
    torch.testing.assert_close(HessianTrace(hessian).score(target, loss)["blocks"], trace, rtol=1e-8, atol=0)


def test_the_trace_of_a_multiple_of_the_identity_ranks_as_the_norm() -> None:
    target = Weights(torch.randn(12, generator=generator(3), dtype=torch.float64), 3)
    loss = quadratic(3 * torch.eye(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64))
    scores = HessianTrace(HessianDiagonal(1)).score(target, loss)["blocks"]
    torch.testing.assert_close(scores, 1.5 * target.weights.square().reshape(4, 3).sum(dim=1))


def test_absolute_curvature_of_a_saddle_counts() -> None:
    diagonal = torch.tensor([2.0, -3.0, 1.0, -1.0]).double()
    target, loss = Weights(torch.ones(4).double(), 2), quadratic(diagonal.diag(), torch.zeros(4).double())
    torch.testing.assert_close(HessianDiagonal(1).score(target, loss)["blocks"], torch.tensor([-0.5, 0.0]).double())
    absolute = HessianDiagonal(1, absolute=True).score(target, loss)["blocks"]
    torch.testing.assert_close(absolute, torch.tensor([2.5, 1.0]).double())


def test_probes_are_unbiased_for_the_diagonal_and_the_trace_of_a_network() -> None:
    target, data = network(4), regression(inputs=5)
    hessian = dense_hessian(target, data)
    estimate = HessianDiagonal(500).diagonal(target, data)
    diagonal = torch.cat([estimate[name].flatten() for name in ("first", "bias", "second")])
    assert float(diagonal.sum()) == pytest.approx(float(hessian.trace()), rel=0.05)
    # Standard error of each entry: the off-diagonal of its row, in units of the parameters' root mean squares.
    parameters = (target.first, target.bias, target.second)
    scales = torch.cat([each.square().mean().sqrt().expand(each.numel()) for each in parameters])
    off = (hessian - hessian.diag().diag()) * scales / scales[:, None]
    error = off.norm(dim=1) / 500**0.5
    assert float(((diagonal - hessian.diag()).abs() / error).max()) < 4.5


@pytest.mark.parametrize("method", ["double_backward", "central_differences"])
def test_the_hessian_product_shares_out_all_of_the_quadratic_term(method: str) -> None:
    target, data = network(), regression()
    weights, hessian = flat(target), dense_hessian(network(), data)
    scores = HessianProduct(method).score(target, data)["layer.hidden"]  # type: ignore[arg-type]
    torch.testing.assert_close(scores, folded(target, 0.5 * weights * (hessian @ weights)), rtol=1e-6, atol=1e-9)
    assert float(scores.sum()) == pytest.approx(float(0.5 * weights @ hessian @ weights), rel=1e-6)


@pytest.mark.parametrize("method", ["double_backward", "central_differences"])
def test_mask_probes_are_unbiased(method: str) -> None:
    target, data = network(), regression()
    hessian = mask_hessian(target, data)
    estimate = MaskHessian(300, method=method).score(target, data)["layer.hidden"]  # type: ignore[arg-type]
    error = 0.5 * (hessian - hessian.diag().diag()).norm(dim=1) / 300**0.5
    assert float(((estimate - 0.5 * hessian.diag()).abs() / error).max()) < 4


def test_curvature_ranks_neurons_of_a_self_compared_network_as_their_removal_does() -> None:
    """The gradient is 0 there, so this is what first-order criteria cannot do."""
    target, data = network(20), regression()
    own = replace(data, outputs=target(data.inputs))
    changes = removal_changes(target, own)
    assert rank_correlation(MaskHessian(200).score(target, own)["layer.hidden"], changes) > 0.85
    outgoing = HessianDiagonal(200, params=("second",))
    assert rank_correlation(outgoing.score(target, own)["layer.hidden"], changes) > 0.85


def test_a_loss_that_is_differentiable_once_needs_differences_and_says_so() -> None:
    target = Weights(torch.tensor([1.0, -2.0, 0.5]).double())
    loss = LossOf((lambda each: (CubedOnce.apply(each.effective()) * each.effective()).sum(),))
    second_derivatives = 12 * target.weights**2
    estimate = HessianDiagonal(1, method="central_differences").diagonal(target, loss)["weights"]
    torch.testing.assert_close(estimate, second_derivatives, rtol=1e-6, atol=0)
    masked = MaskHessian(1, method="central_differences").score(target, loss)["blocks"]
    torch.testing.assert_close(masked, 0.5 * second_derivatives * target.weights**2, rtol=1e-6, atol=0)
    for criterion in (HessianDiagonal(1), HessianProduct(), MaskHessian(1)):
        with pytest.raises(ValueError, match=r"CubedOnceBackward.*central_differences"):
            criterion.score(target, loss)
        assert target.mask is None and not target.weights.requires_grad


def test_a_failure_half_way_gives_the_parameters_back_and_takes_the_mask_off() -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.tensors().items()}

    class FailsLater:
        def __init__(self) -> None:
            self.calls = 0

        def losses(self, each: Perceptron) -> Iterator[Tensor]:
            self.calls += 1
            yield each(torch.ones(1, 5).double()).sum()
            yield each(torch.ones(1, 5).double()).sum() * (torch.nan if self.calls == 2 else 1.0)

    for criterion in (HessianDiagonal(method="central_differences"), MaskHessian(method="central_differences")):
        with pytest.raises(ValueError, match="batch 1"):
            criterion.score(target, FailsLater())
        assert_same(before, dict(target.tensors()))
        assert target.mask is None and not any(tensor.requires_grad for tensor in target.tensors().values())


@pytest.mark.parametrize("make", [lambda: HessianDiagonal(0), lambda: MaskHessian(0)])
def test_at_least_one_probe_is_needed(make: object) -> None:
    with pytest.raises(ValueError, match="samples"):
        make()  # type: ignore[operator]
