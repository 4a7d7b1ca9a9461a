"""The loop that trains masks, and what brings them to a budget."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.bottleneck_mask import BottleneckMask
from secateur.granularity import Weights
from secateur.mask_fit import AugmentedLagrangian, Constraint, MaskFit, Penalty, TwoSided
from secateur.masks import HardConcrete, Sigmoid, StraightThrough, TrainableMask
from secateur.surgery import Network, trace
from secateur.surgery.cost import count_macs
from secateur.surgery.soft_cost import soft_macs
from secateur.training import Shuffled, fit
from secateur.transport_mask import TransportMask
from tests.contracts import assert_exact_budget, assert_same
from tests.secateur import networks
from tests.secateur.surgery import networks as layouts
from tests.secateur.surgery.networks import pixels, seeded, tokens
from tests.secateur.test_greedy import network as stacked

BATCHES = Shuffled(32, 16, seed=3)


class Problem:
    """A perceptron with 12 hidden neurons of which 4 matter, and what it should say."""

    def __init__(self) -> None:
        self.module = networks.perceptron(4, 12, 2)
        with torch.no_grad():
            self.module[2].weight[:, 4:] = 0  # type: ignore[operator, index]
            self.module[2].weight[:, :4] += self.module[2].weight[:, :4].sign()  # type: ignore[operator, index]
        self.inputs = networks.errors(self.module, 4, samples=32).inputs
        with torch.no_grad():
            self.outputs = self.module(self.inputs)
        self.target = trace(self.module, self.inputs)

    def loss(self, target: Any, batch: Tensor) -> Tensor:
        return (target(self.inputs[batch]) - self.outputs[batch]).square().mean()


MASKS: list[Any] = [HardConcrete, Sigmoid, StraightThrough, BottleneckMask]


@pytest.mark.parametrize("make", MASKS)
def test_one_loop_trains_every_mask_and_leaves_the_weights_alone(make: Any) -> None:
    problem = Problem()
    (group,) = problem.target.groups()
    before = copy.deepcopy(problem.module.state_dict())
    mask: TrainableMask = make(problem.target.groups())
    record = fit(MaskFit(problem.target, mask, problem.loss, Penalty(0.1), cost="params"), BATCHES, steps=150)
    assert record.steps == 150
    keep = mask.eval().keep(Budget(limit=4))
    assert torch.equal(keep[group.name], torch.arange(12) < 4)
    assert_exact_budget(keep, problem.target.groups(), Budget(limit=4))
    assert_same(dict(before), dict(problem.module.state_dict()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in problem.module.parameters())


def test_transport_masks_need_no_constraint_and_cool() -> None:
    problem = Problem()
    mask = TransportMask(problem.target.groups(), share=4 / 12)
    with torch.no_grad():
        mask.logits[0].add_(torch.randn(12, generator=torch.Generator().manual_seed(0)) * 0.1)
    fit(MaskFit(problem.target, mask, problem.loss), BATCHES, steps=60)
    assert int(mask.steps) == 60
    assert torch.equal(next(iter(mask.keep().values())), torch.arange(12) < 4)


@pytest.mark.parametrize(
    "constraint", [AugmentedLagrangian(1 / 3, rho=2.0), TwoSided(1 / 3)], ids=["multiplier", "two-sided"]
)
def test_constraints_bring_the_mask_to_the_budget_without_a_weight_to_tune(constraint: Constraint) -> None:
    problem = Problem()
    mask = Sigmoid(problem.target.groups(), initial=3.0)
    fit(MaskFit(problem.target, mask, problem.loss, constraint), BATCHES, steps=400)
    assert float(mask.penalty().detach()) == pytest.approx(1 / 3, abs=0.03)


def test_a_penalty_of_0_is_no_penalty() -> None:
    states = []
    for constraint in (None, Penalty(0.0)):
        problem = Problem()
        mask = HardConcrete(problem.target.groups(), initial=0.0)
        fit(MaskFit(problem.target, mask, problem.loss, constraint), BATCHES, steps=10)
        states.append({name: value for name, value in mask.state_dict().items() if isinstance(value, Tensor)})
    assert_same(*states)


def test_the_two_sided_term_is_0_at_the_goal_and_1_at_both_ends() -> None:
    term = TwoSided(0.4, weight=1.0)
    values = [float(term(torch.tensor(kept))) for kept in (0.0, 0.2, 0.4, 0.7, 1.0)]
    assert values == pytest.approx([1.0, 0.5, 0.0, 0.5, 1.0])


def test_the_multiplier_is_the_price_of_the_constraint() -> None:
    """min (x - 2)^2 subject to x <= 0.5 has the multiplier 3."""
    constraint = AugmentedLagrangian(0.5, rho=4.0, every=5)
    x = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        ((x - 2).square() + constraint(x)).backward()
        optimizer.step()
        constraint.update(x.item())
    assert x.item() == pytest.approx(0.5, abs=1e-3) and float(constraint.price) == pytest.approx(3.0, abs=1e-2)
    slack = AugmentedLagrangian(0.9)
    assert float(slack(torch.tensor(0.2))) == 0, "within the budget it asks for nothing"


def test_fits_go_on_from_checkpoints(tmp_path: Path) -> None:
    def make(steps: int, path: Path | None) -> dict[str, Any]:
        problem = Problem()
        mask = HardConcrete(problem.target.groups(), initial=0.0)
        module = MaskFit(problem.target, mask, problem.loss, AugmentedLagrangian(0.3))
        stop = _Stop(steps)
        try:
            fit(module, BATCHES, steps=30, checkpoint=path, resume=path is not None, callbacks=[stop])
        except KeyboardInterrupt:
            return {}
        return dict(module.state_dict())

    path = tmp_path / "mask.ckpt"
    assert not make(11, path)
    assert_same(make(99, None), make(99, path))


class _Stop(networks.lightning.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (layouts.Residual, pixels()),
        (layouts.Mobile, pixels()),
        (layouts.Transformer, tokens()),
        (layouts.Dense, pixels()),
    ],
)
def test_soft_multiply_adds_are_the_counted_ones_at_masks_of_0_and_1(kind: Any, inputs: Tensor) -> None:
    network = trace(seeded(kind), inputs)
    ones = {group.name: torch.ones(group.size) for group in network.groups()}
    assert float(soft_macs(network, ones)) == pytest.approx(count_macs(network.module, inputs))
    source = torch.Generator().manual_seed(1)
    keep = {}
    for group in network.groups():
        keep[group.name] = torch.rand(group.size, generator=source) < 0.6
        keep[group.name][0] = True
    masks = {name: kept.float() for name, kept in keep.items()}
    assert float(soft_macs(network, masks)) == pytest.approx(count_macs(network.cut(keep).module, inputs), rel=1e-6)


def test_soft_multiply_adds_know_blocks_and_are_differentiable() -> None:
    network = stacked()
    masks = {group.name: torch.ones(group.size, requires_grad=True) for group in network.groups()}
    total = soft_macs(network, masks)
    total.backward()
    assert all(bool((mask.grad > 0).all()) for mask in masks.values())  # type: ignore[operator]
    keep = {name: torch.ones(len(mask), dtype=torch.bool) for name, mask in masks.items()}
    keep["1.block"][:] = False
    keep["0.attention"][1] = False
    soft = soft_macs(network, {name: kept.float() for name, kept in keep.items()})
    assert float(soft) == pytest.approx(count_macs(network.cut(keep).module, network.example_inputs))
    with pytest.raises(ValueError, match="example inputs"):
        soft_macs(Network(network.module, network._groups[:1], counts=network.counts[:1]), masks)


def test_autobot_finds_the_informative_channels_and_meets_its_multiply_adds() -> None:
    problem = Problem()
    target, whole = problem.target, problem.target.usage.macs  # type: ignore[union-attr]
    mask = Sigmoid(target.groups(), initial=3.0)

    def kept(masks: Any) -> Tensor:
        return soft_macs(target, masks) / whole

    fit(MaskFit(target, mask, problem.loss, TwoSided(0.4), kept=kept, rate=0.3), BATCHES, steps=100)
    found = next(iter(mask.logits)).detach()
    assert set(found.topk(4).indices.tolist()) == {0, 1, 2, 3}


def test_weights_of_any_granularity_are_a_target() -> None:
    module = networks.Regression()
    target = Weights(module)
    mask = Sigmoid(target.groups())
    loss = lambda each, batch: (each(module.data.inputs[batch]) - module.data.outputs[batch]).square().mean()  # noqa: E731
    before = copy.deepcopy(module.state_dict())
    fit(MaskFit(target, mask, loss, Penalty(1.0)), BATCHES, steps=3)
    assert_same(dict(before), dict(module.state_dict()))
    assert float(mask.penalty().detach()) < float(Sigmoid(target.groups()).penalty().detach())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Penalty(-1.0), "weight"),
        (lambda: TwoSided(1.0), "share"),
        (lambda: AugmentedLagrangian(0.5, every=0), "every"),
        (lambda: MaskFit(None, Sigmoid(Problem().target.groups()), lambda *_: torch.zeros(()), rate=0.0), "rate"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
