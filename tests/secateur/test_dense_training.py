"""Training behind soft masks and thresholds: what the loss sees, what the gradient is, what is left in the end."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.dense_training import DenseTraining, DifferentiablePruning, SoftMasking, SoftThreshold
from secateur.granularity import Columns, NofM, Rows, Weights
from secateur.schedules import Linear, OneShot, Polynomial
from secateur.training import fit
from tests.contracts import assert_same
from tests.secateur.networks import BATCHES, Regression, trained

QUARTER = Budget(share=0.25)
MAKERS: dict[str, Any] = {
    "soft masking": lambda budget=QUARTER: SoftMasking(Polynomial(), budget, last_step=14, first_step=2, every=2),
    "soft threshold": lambda budget=QUARTER: SoftThreshold(Polynomial(), budget, last_step=14, first_step=2),
    "PDP": lambda budget=QUARTER: DifferentiablePruning(Polynomial(), budget, 14, first_step=2, temperature=0.1),
}
every_method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


class Probe(lightning.Callback):
    """Around the callback under test: what the loss saw, its gradients, and the weights and gradients behind."""

    def __init__(self, callback: DenseTraining) -> None:
        self.callback = callback
        self.seen: list[dict[str, Tensor]] = []
        self.steps: list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.dense = {name: w.detach().clone() for name, w in Weights(pl_module).weights().items()}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        weights = Weights(pl_module).weights()
        self.seen.append({name: weight.detach().clone() for name, weight in weights.items()})
        gradients = {name: weight.grad.clone() for name, weight in weights.items()}  # type: ignore[union-attr]
        self.steps.append((self.dense, gradients, weights))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        before, gradients, weights = self.steps.pop()
        after = {name: weight.grad.clone() for name, weight in weights.items()}  # type: ignore[union-attr]
        self.steps.append((before, gradients, after))


def probed(callback: DenseTraining, steps: int = 20) -> tuple[Regression, Probe]:
    module, probe = Regression(rate=0.1, optimizer=torch.optim.SGD), Probe(callback)
    fit(module, BATCHES, steps=steps, callbacks=[probe, callback])
    return module, probe


@every_method
def test_a_full_budget_changes_nothing(make: Any) -> None:
    module, _ = trained(make(Budget(share=1.0)))
    assert_same(dict(module.state_dict()), dict(trained(None)[0].state_dict()))


@every_method
def test_the_budget_is_met_in_the_end_and_no_parameter_is_added(make: Any) -> None:
    callback = make()
    module, probe = probed(callback)
    if isinstance(callback, SoftMasking):
        assert sum(int((weight != 0).any(0).sum()) for weight in Weights(module).weights().values()) == 3
    else:
        assert sum(int((weight != 0).sum()) for weight in Weights(module).weights().values()) == 12
    assert set(module.state_dict()) == set(Regression().state_dict())
    for before, _, _ in probe.steps[-1:]:
        assert all(bool((weight != 0).all()) for weight in before.values()), "behind, weights stay dense"


@every_method
def test_runs_are_deterministic(make: Any) -> None:
    first, second = (trained(make())[0] for _ in range(2))
    assert_same(dict(first.state_dict()), dict(second.state_dict()))


@every_method
def test_weights_come_back_when_a_step_fails(make: Any) -> None:
    class Failing(Regression):
        def training_step(self, batch: Tensor, step: int) -> Tensor:
            if self.global_step == 12:
                raise RuntimeError("out of luck")
            return super().training_step(batch, step)

    module = Failing()
    with pytest.raises(RuntimeError, match="out of luck"):
        fit(module, BATCHES, steps=20, callbacks=[make()])
    assert all(bool((weight != 0).all()) for weight in Weights(module).weights().values())


def test_st3_sees_soft_thresholds_and_gradients_go_straight_through() -> None:
    _, probe = probed(SoftThreshold(OneShot(), QUARTER, last_step=0))
    for (before, gradients, after), seen in zip(probe.steps, probe.seen, strict=True):
        sizes = torch.cat([weight.abs().flatten() for weight in before.values()])
        limit = sizes.sort().values[len(sizes) * 3 // 4 - 1]
        for name, weight in before.items():
            torch.testing.assert_close(seen[name], weight.sign() * (weight.abs() - limit).clamp_min(0))
        assert_same(gradients, after)
        assert sum(int((value == 0).sum()) for value in seen.values()) == 36


def test_st3_has_no_jump_at_its_threshold_and_its_scales_are_those_of_the_code() -> None:
    module = Regression()
    weights = {name: weight.detach() for name, weight in Weights(module).weights().items()}
    seen = {}
    for rescale in (False, True):
        callback = SoftThreshold(OneShot(), Budget(share=0.5), 0, by_width=True, rescale=rescale)
        callback._target = Weights(module)
        seen[rescale] = callback.seen()
    for name, weight in weights.items():
        plain, scaled = (seen[each][name].view(weight.shape) for each in (False, True))
        kept = (plain != 0) * weight.abs()
        scale = 1.01 / ((kept.mean(1) + 1e-6) / (weight.abs().mean(1) + 1e-6) + 0.01)
        torch.testing.assert_close(scaled, plain * scale[:, None])
        assert float((weight.abs() - plain.abs()).max()) == pytest.approx(
            float((weight.abs() - plain.abs())[plain != 0].min())
        ), "what stays loses the threshold, what goes no more than it"
    widths = {name: sum(weight.shape) ** 0.5 for name, weight in weights.items()}
    sizes = torch.cat([weight.detach().abs().flatten() * widths[name] for name, weight in weights.items()])
    left = torch.cat([seen[False][name] != 0 for name in weights])
    assert float(sizes[left].min()) > float(sizes[~left].max())


@pytest.mark.parametrize("granularity", [None, Rows(), NofM(1, 4)], ids=repr)
def test_pdp_has_the_gradient_of_its_soft_mask(granularity: Any) -> None:
    callback = DifferentiablePruning(Linear(), QUARTER, 10, temperature=0.2, granularity=granularity, min_keep=0)
    module = Regression()
    callback._target = Weights(module, callback.granularity, min_keep=0)
    callback.step = 6
    seen = callback.seen()
    for name, dense in callback.target.tensors().items():
        free = dense.detach().clone().requires_grad_()
        energy = free.square() if granularity != Rows() else free.square().sum(1, keepdim=True)
        limit = callback._limit(next(g for g in callback.target.groups() if g.name == name), callback._sizes(2.0))
        product = free * torch.sigmoid((energy - limit) / 0.2)
        torch.testing.assert_close(product.detach(), seen[name])
        gradient = torch.randn(dense.shape, generator=torch.Generator().manual_seed(0), dtype=dense.dtype)
        (expected,) = torch.autograd.grad(product, free, gradient)
        torch.testing.assert_close(callback.pulled(name, gradient, dense), expected)


def test_pdp_is_one_half_in_the_middle_and_hard_when_cold() -> None:
    module = Regression()
    masks = {}
    for temperature in (0.1, 1e-9):
        callback = DifferentiablePruning(OneShot(), QUARTER, 0, temperature=temperature)
        callback._target = Weights(module)
        seen = callback.seen()
        masks[temperature] = {name: seen[name] / view for name, view in callback.target.tensors().items()}
    for name, view in Weights(module).tensors().items():
        soft, hard = masks[0.1][name], masks[1e-9][name]
        kept = hard > 0.5
        assert bool(((hard - kept.double()).abs() < 1e-6).all())
        assert bool((soft[kept] > 0.5).all()) and bool((soft[~kept] < 0.5).all())
        assert float(view.abs()[kept].min()) > float(view.abs()[~kept].max())
        between = 0.5 * float(soft[kept].min().logit() + soft[~kept].max().logit())
        assert between == pytest.approx(0, abs=1e-9), "the limit is in the middle of the squares"
    assert sum(int((mask > 0.5).sum()) for mask in masks[1e-9].values()) == 12


def test_pdp_of_n_of_m_leaves_exactly_n_of_each_m() -> None:
    module, _ = trained(DifferentiablePruning(Polynomial(), QUARTER, 14, temperature=0.1, granularity=NofM(1, 4)))
    for weight in Weights(module).weights().values():
        assert bool(((weight.flatten().view(-1, 4) != 0).sum(1) == 1).all())


def test_soft_masking_hides_whole_inputs_which_learn_on_and_return() -> None:
    callback = SoftMasking(OneShot(), Budget(share=0.5), last_step=0, every=1)
    module, probe = probed(callback, steps=60)
    returned, hidden = 0, dict[str, Tensor]()
    for (before, gradients, after), seen in zip(probe.steps[1:], probe.seen[1:], strict=True):
        assert_same(gradients, after)
        shown = 0
        for name, weight in before.items():
            columns = (seen[name] != 0).all(0)
            assert_same(seen[name], weight * columns)
            shown += int(columns.sum())
            if not bool(columns.all()):
                assert bool((gradients[name][:, ~columns] != 0).any())
            returned += int((hidden.get(name, torch.zeros_like(columns)) & columns).sum())
            hidden[name] = hidden.get(name, torch.zeros_like(columns)) | ~columns
        assert shown == 6, "half of 4 and 8 inputs, in every step"
    assert returned > 0
    alive = {name: (weight != 0).all(0) for name, weight in Weights(module).weights().items()}
    assert sum(int(each.sum()) for each in alive.values()) == 6


def test_soft_masking_takes_what_an_allocator_chooses() -> None:
    seen = []

    def allocator(scores: Any, groups: Any, budget: Budget) -> Any:
        seen.append(scores)
        return Columns().allocate(scores, groups, budget)

    callback = SoftMasking(OneShot(), Budget(share=0.5, cost="params"), 0, every=5, allocator=allocator)
    module, _ = probed(callback, steps=11)
    assert len(seen) == 2, "after 5 and 10 steps"
    assert sum(int((weight != 0).sum()) for weight in Weights(module).weights().values()) <= 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftMasking(Polynomial(), QUARTER, 3, first_step=4), "first_step"),
        (lambda: SoftMasking(Polynomial(), QUARTER, 3, every=0), "every"),
        (lambda: DifferentiablePruning(Polynomial(), QUARTER, 3, temperature=0.0), "temperature"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
