"""SparseGPT, Wanda and CHITA on small layers with known answers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from secateur.maths import topk_mask
from secateur.oneshot import Chita, LayerWanda, Pruned, SparseGPT, gradient_rows
from secateur.patterns import Blocks, Given, NofM, Pattern, PerRow, Unstructured
from secateur.solvers.gram import Gram
from secateur.solvers.obs import quadratic_loss, refit, removal_losses
from tests.contracts import assert_deterministic, assert_same
from tests.secateur.toys import Perceptron, generator, mean_loss, regression

PATTERNS: list[Pattern] = [Unstructured(0.4), PerRow(0.5), NofM(2, 4), Blocks(0.5, 2, 4)]


def layer(rows: int = 8, d: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Gram]:
    """A weight, and inputs of which neighbours are alike."""
    source = generator(seed)
    hidden = torch.randn(200, d // 2, generator=source, dtype=torch.float64)
    noise = torch.randn(200, d, generator=source, dtype=torch.float64)
    inputs = hidden.repeat_interleave(2, 1) * torch.linspace(0.5, 2, d) + 0.3 * noise
    return torch.randn(rows, d, generator=source).to(dtype), Gram(d, dtype=dtype).add(inputs)


def loss_of(found: Tensor, weight: Tensor, gram: Gram, damp: float = 0.01) -> float:
    return quadratic_loss(found - weight, gram.damped(damp))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("window", [4, 128])
def test_sparsegpt_beats_magnitude_and_its_own_mask_without_an_update(pattern: Pattern, window: int) -> None:
    weight, gram = layer()
    pruned = SparseGPT(pattern, window=window).prune(weight, gram)
    assert int(pruned.keep.sum()) == int(pattern.mask(weight.abs()).sum())
    assert not pruned.weight[~pruned.keep].any()
    assert pruned.loss == pytest.approx(loss_of(pruned.weight, weight, gram))
    magnitude = torch.where(pattern.mask(weight.abs()), weight, 0)
    assert pruned.loss < loss_of(magnitude, weight, gram)
    assert pruned.loss < loss_of(torch.where(pruned.keep, weight, 0), weight, gram)


def test_sparsegpt_keeps_exactly_n_of_m() -> None:
    weight, gram = layer()
    keep = SparseGPT(NofM(2, 4)).prune(weight, gram).keep
    assert bool((keep.reshape(-1, 4).sum(1) == 2).all())


def test_one_column_removed_from_the_left_is_the_exact_surgeon() -> None:
    weight, gram = layer(rows=3, d=6)
    keep = torch.ones(3, 6, dtype=torch.bool)
    keep[:, 0] = False
    pruned = SparseGPT(Given(keep)).prune(weight, gram)
    hessian = gram.damped()
    assert pruned.loss == pytest.approx(float(removal_losses(weight, hessian)[:, 0].sum()))
    torch.testing.assert_close(pruned.weight, refit(weight, hessian, keep))


def test_inputs_that_have_nothing_in_common_make_sparsegpt_wanda() -> None:
    weight, _ = layer()
    gram = Gram(16, dtype=torch.float64).add(torch.diag(torch.linspace(1, 3, 16, dtype=torch.float64)))
    for pattern in (PerRow(0.5), NofM(2, 4)):
        swept = SparseGPT(pattern, damp=0.0).prune(weight, gram)
        scored = LayerWanda(pattern, damp=0.0).prune(weight, gram)
        assert_same(swept.keep, scored.keep)
        torch.testing.assert_close(swept.weight, scored.weight)


def test_wanda_scores_are_weights_times_input_norms_within_a_row() -> None:
    weight, gram = layer()
    pruned = LayerWanda(PerRow(0.25)).prune(weight, gram)
    scores = weight.abs() * gram.mean.diagonal().sqrt()
    for row in range(8):
        assert_same(pruned.keep[row], topk_mask(scores[row], 4))
    assert_same(pruned.weight, torch.where(pruned.keep, weight, 0))


def test_a_refit_lowers_wandas_loss_on_the_same_mask() -> None:
    weight, gram = layer()
    plain, refitted = (LayerWanda(PerRow(0.5), refit=each).prune(weight, gram) for each in (False, True))
    assert_same(plain.keep, refitted.keep)
    assert refitted.loss < plain.loss
    assert refitted.loss == pytest.approx(loss_of(refitted.weight, weight, gram))
    swept = SparseGPT(Given(plain.keep)).prune(weight, gram)
    assert refitted.loss <= swept.loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_keeping_everything_changes_nothing(dtype: torch.dtype) -> None:
    weight, gram = layer()
    weight = weight.to(dtype)
    for full in (Unstructured(1.0), PerRow(1.0), NofM(4, 4), Blocks(1.0, 2, 2)):
        for method in (SparseGPT(full), LayerWanda(full), LayerWanda(full, refit=True)):
            pruned = method.prune(weight, gram)
            assert_same(pruned.weight, weight)
            assert bool(pruned.keep.all()) and pruned.loss == 0


def test_permuting_outputs_permutes_what_is_pruned() -> None:
    weight, gram = layer()
    rows = torch.randperm(8, generator=generator(5))
    for method in (SparseGPT(PerRow(0.5)), SparseGPT(Unstructured(0.5)), LayerWanda(PerRow(0.5), refit=True)):
        pruned = assert_deterministic(partial(_parts, method, weight, gram))
        again = method.prune(weight[rows], gram)
        torch.testing.assert_close(again.weight, pruned[0][rows])
        assert_same(again.keep, pruned[1][rows])


def _parts(method: SparseGPT | LayerWanda, weight: Tensor, gram: Gram) -> list[Tensor]:
    pruned = method.prune(weight, gram)
    return [pruned.weight, pruned.keep]


def test_permuting_inputs_permutes_wandas_mask() -> None:
    weight, gram = layer()
    order = torch.randperm(16, generator=generator(6))
    permuted = Gram(16, dtype=torch.float64)
    permuted.mean, permuted.samples = gram.mean[order][:, order], gram.samples
    found = LayerWanda(PerRow(0.5), refit=True).prune(weight, gram)
    again = LayerWanda(PerRow(0.5), refit=True).prune(weight[:, order], permuted)
    assert_same(again.keep, found.keep[:, order])
    torch.testing.assert_close(again.weight, found.weight[:, order])


def test_float32_agrees_with_float64_where_inputs_are_nearly_dependent() -> None:
    losses = []
    for dtype in (torch.float32, torch.float64):
        inputs = torch.randn(100, 4, generator=generator(1)) @ torch.randn(4, 32, generator=generator(2))
        weight = torch.randn(6, 32, generator=generator(3)).to(dtype)
        losses.append(SparseGPT(Unstructured(0.5)).prune(weight, Gram(32, dtype=dtype).add(inputs)).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_wrong_layers_are_refused() -> None:
    weight, gram = layer()
    with pytest.raises(ValueError, match=r"must be \(rows, 16\), got \(8, 15\)"):
        SparseGPT(Unstructured(0.5)).prune(weight[:, 1:], gram)
    with pytest.raises(ValueError, match="multiple of 5"):
        LayerWanda(NofM(1, 5)).prune(weight, gram)
    with pytest.raises(ValueError, match="empty"):
        LayerWanda(PerRow(0.5)).prune(weight, Gram(16))
    weight[0, 0] = torch.nan
    for method in (SparseGPT(Unstructured(0.5)), LayerWanda(PerRow(0.5))):
        with pytest.raises(ValueError, match="NaN"):
            method.prune(weight, gram)


def rows_and_weights(p: int = 40, n: int = 25) -> tuple[Tensor, Tensor]:
    source = generator(7)
    mixing = torch.randn(p, p, generator=source, dtype=torch.float64)
    return torch.randn(n, p, generator=source, dtype=torch.float64) @ mixing / p, torch.randn(
        p, generator=source
    ).double()


def chita(rows: Tensor, weights: Tensor, **options: float) -> Pruned:
    return Chita(**options).prune(weights, lambda _: rows)  # type: ignore[arg-type]


def test_chita_meets_the_budget_and_beats_magnitude() -> None:
    rows, weights = rows_and_weights()
    pruned = chita(rows, weights, keep=0.3)
    assert int(pruned.keep.sum()) == 12 and not pruned.weight[~pruned.keep].any()
    magnitude = torch.where(topk_mask(weights.abs(), 12), weights, 0)
    assert (rows @ (pruned.weight - weights)).norm() < 0.5 * (rows @ (magnitude - weights)).norm()


def test_chita_with_a_heavy_ridge_is_magnitude_pruning() -> None:
    rows, weights = rows_and_weights()
    assert_same(chita(rows, weights, keep=0.3, ridge=1e6).keep, topk_mask(weights.abs(), 12))


def test_chita_contracts() -> None:
    rows, weights = rows_and_weights()
    full = chita(rows, weights, keep=1.0)
    assert_same(full.weight, weights)
    assert bool(full.keep.all()) and full.loss == 0
    found = assert_deterministic(lambda: chita(rows, weights, keep=0.5).weight)
    order = torch.randperm(40, generator=generator(8))
    torch.testing.assert_close(chita(rows[:, order], weights[order], keep=0.5).weight, found[order])
    assert not chita(rows, weights, keep=0.0).keep.any()


def test_the_linear_term_moves_along_the_gradient() -> None:
    rows, weights = rows_and_weights()
    slopes = []
    for first_order in (0.0, 0.5):
        pruned = chita(rows, weights, keep=0.6, first_order=first_order, ridge=1e-2)
        slopes.append(float(rows.sum(0) @ (pruned.weight - weights)))
    assert slopes[1] < slopes[0]


def test_chita_in_stages_keeps_more_of_a_network_than_magnitude() -> None:
    data = regression(samples=96, size=4)
    model = Perceptron.random(5, 12, 2).fitted(data)
    names = ("first", "second")
    shapes = [model.tensors()[name].shape for name in names]

    def with_weights(weights: Tensor) -> Perceptron:
        first, second = weights.split([shape.numel() for shape in shapes])
        return Perceptron(first.reshape(shapes[0]), model.bias, second.reshape(shapes[1]))

    dense = torch.cat([model.tensors()[name].flatten() for name in names])
    calls = []

    def gradients(weights: Tensor) -> Tensor:
        calls.append(int((weights != 0).sum()))
        return gradient_rows(with_weights(weights), data, names)

    pruned = Chita(keep=0.5, stages=3).prune(dense, gradients)
    assert calls == sorted(calls, reverse=True) and len(calls) == 3
    magnitude = torch.where(topk_mask(dense.abs(), int(pruned.keep.sum())), dense, 0)
    assert int(pruned.keep.sum()) == 42
    assert mean_loss(data, with_weights(pruned.weight)) < mean_loss(data, with_weights(magnitude))


def test_gradient_rows_are_one_a_batch_in_the_order_of_the_tensors() -> None:
    data = regression()
    model = Perceptron.random(5, 4, 2)
    rows = gradient_rows(model, data, ("bias", "second"))
    assert rows.shape == (4, 4 + 8)
    assert not any(tensor.requires_grad for tensor in model.tensors().values())


def test_wrong_chita_is_refused() -> None:
    rows, weights = rows_and_weights()
    with pytest.raises(ValueError, match="keep must be between"):
        Chita(keep=1.5)
    with pytest.raises(ValueError, match="stages"):
        Chita(keep=0.5, stages=0)
    with pytest.raises(ValueError, match=r"\(samples, 40\)"):
        chita(rows[:, 1:], weights, keep=0.5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        chita(rows * torch.nan, weights, keep=0.5)
