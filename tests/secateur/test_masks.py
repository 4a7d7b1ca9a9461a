"""Trainable masks against their closed forms, and fitted on a network whose useless neurons are known."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from secateur.allocation import Budget
from secateur.masks import HardConcrete, Sigmoid, StraightThrough, TrainableMask
from secateur.units import UnitGroup
from tests.contracts import assert_deterministic, assert_exact_budget, assert_full_keep_changes_nothing, assert_same
from tests.secateur.toys import Perceptron, generator, regression

GROUPS = (
    UnitGroup("block.0.heads", 6, (), {"macs": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])}, min_keep=2),
    UnitGroup("block.0.channels", 40, (), {"macs": torch.full((40,), 0.5)}),
)
MAKERS: list[Callable[..., TrainableMask]] = [StraightThrough, HardConcrete, Sigmoid]
every_mask = pytest.mark.parametrize("make", MAKERS)


def with_logits(mask: TrainableMask, seed: int = 0, scale: float = 3.0) -> TrainableMask:
    source = generator(seed)
    with torch.no_grad():
        for logits in mask.logits:
            logits.copy_(scale * torch.randn(logits.shape, generator=source))
    return mask


@every_mask
def test_masks_have_a_value_in_the_unit_interval_for_each_unit_and_a_gradient(
    make: Callable[..., TrainableMask],
) -> None:
    mask = with_logits(make(GROUPS))
    values = mask()
    assert {name: tuple(value.shape) for name, value in values.items()} == {g.name: (g.size,) for g in GROUPS}
    assert all(bool(((value >= 0) & (value <= 1)).all()) for value in values.values())
    (sum(value.sum() for value in values.values()) + mask.penalty()).backward()
    assert all(bool((logits.grad != 0).all()) for logits in mask.logits)


@every_mask
def test_masks_are_deterministic(make: Callable[..., TrainableMask]) -> None:
    def run() -> list[object]:
        mask = with_logits(make(GROUPS))
        return [mask(), mask(), mask.penalty("macs"), mask.keep(), mask.keep(Budget(share=0.5)), mask.eval()()]

    assert_deterministic(run)


@pytest.mark.parametrize("make", [StraightThrough, HardConcrete])
def test_a_new_mask_is_exactly_one(make: Callable[..., TrainableMask]) -> None:
    assert_same(make(GROUPS).eval()(), {group.name: torch.ones(group.size) for group in GROUPS})
    assert_same(StraightThrough(GROUPS).train()(), make(GROUPS).eval()())
    target, inputs = Perceptron.random(5, 6, 2), regression().inputs
    with target.masked(make(target.groups()).eval()()):
        assert_same(target(inputs), Perceptron.random(5, 6, 2)(inputs))


@every_mask
def test_a_new_mask_keeps_everything(make: Callable[..., TrainableMask]) -> None:
    mask = make(GROUPS)
    assert all(bool(kept.all()) for kept in mask.keep().values())
    assert all(bool(kept.all()) for kept in mask.keep(Budget(share=1.0)).values())
    assert all(bool((value > 0.99).all()) for value in mask.eval()().values())
    assert_full_keep_changes_nothing(Perceptron.random(5, 6, 2))


@every_mask
def test_a_budget_is_met_exactly_with_the_largest_logits(make: Callable[..., TrainableMask]) -> None:
    mask = with_logits(make(GROUPS))
    for budget in (Budget(limit=17), Budget(share=0.3), Budget(share=0.4, cost="macs")):
        assert_exact_budget(mask.keep(budget), GROUPS, budget)
    keep = mask.keep(Budget(limit=17))
    kept = torch.cat([logits[keep[group.name]] for logits, group in zip(mask.logits, GROUPS, strict=True)])
    left_out = torch.cat([logits[~keep[group.name]] for logits, group in zip(mask.logits, GROUPS, strict=True)])
    assert len(kept) == 17 and bool(kept.min() >= left_out.max())


@every_mask
def test_floors_hold_without_a_budget(make: Callable[..., TrainableMask]) -> None:
    mask = make(GROUPS, initial=-20.0)
    with torch.no_grad():
        mask.logits[0][4] = -10.0
    assert [kept.sum().item() for kept in mask.keep().values()] == [2, 1]
    assert bool(mask.keep()["block.0.heads"][4])


@every_mask
def test_keeps_permute_with_the_logits(make: Callable[..., TrainableMask]) -> None:
    mask, order = with_logits(make(GROUPS)), torch.randperm(40, generator=generator(1))
    budget = Budget(limit=20)
    before, learned = mask.keep(budget)["block.0.channels"], mask.keep()["block.0.channels"]
    with torch.no_grad():
        mask.logits[1].copy_(mask.logits[1][order])
    assert torch.equal(mask.keep(budget)["block.0.channels"], before[order])
    assert torch.equal(mask.keep()["block.0.channels"], learned[order])


@every_mask
def test_the_penalty_is_the_expected_share_of_the_cost(make: Callable[..., TrainableMask]) -> None:
    mask = with_logits(make(GROUPS))
    probabilities = [mask.probability(logits) for logits in mask.logits]
    torch.testing.assert_close(mask.penalty(), torch.cat(probabilities).mean())
    macs = torch.cat([group.cost["macs"] for group in GROUPS])
    torch.testing.assert_close(mask.penalty("macs"), (torch.cat(probabilities) * macs).sum() / macs.sum())
    assert make(GROUPS, initial=30.0).penalty("macs").item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="no cost 'bytes'"):
        mask.penalty("bytes")
    free = UnitGroup("free", 3, (), {"macs": torch.zeros(3)})
    with pytest.raises(ValueError, match="above 0"):
        make([free]).penalty("macs")


def test_straight_through_is_a_step_with_the_gradient_of_a_sigmoid() -> None:
    mask = StraightThrough(GROUPS[:1])
    edge = math.log(0.01 / 0.99)
    with torch.no_grad():
        mask.logits[0].copy_(torch.tensor([edge - 1e-3, edge + 1e-3, -30.0, 0.0, 3.0, 30.0]))
    value = mask()["block.0.heads"]
    assert value.tolist() == [0, 1, 0, 1, 1, 1]
    (gradient,) = torch.autograd.grad(value.sum(), mask.logits[0])
    sigmoid = torch.sigmoid(mask.logits[0].detach())
    torch.testing.assert_close(gradient, sigmoid * (1 - sigmoid))
    torch.testing.assert_close(mask.penalty(), sigmoid.mean())


def many(logit: float, seed: int = 0) -> HardConcrete:
    return HardConcrete([UnitGroup("units", 200_000, ())], initial=logit, seed=seed)


@pytest.mark.parametrize("logit", [-3.0, -0.5, 0.0, 2.0, 3.0])
def test_the_expected_count_of_nonzeros_agrees_with_sampling(logit: float) -> None:
    mask = many(logit)
    sample = mask()["units"]
    assert float((sample > 0).double().mean()) == pytest.approx(float(mask.penalty().detach()), abs=0.005)
    # P(z = 1) = P(s >= (1 - gamma) / (zeta - gamma)) in closed form.
    point = (1 - mask.gamma) / (mask.zeta - mask.gamma)
    ones = 1 / (1 + math.exp(mask.beta * math.log(point / (1 - point)) - logit))
    assert float((sample == 1).double().mean()) == pytest.approx(ones, abs=0.005)


def test_hard_concrete_samples_follow_the_stretched_distribution_between_the_ends() -> None:
    mask = many(0.4)
    sample = mask()["units"].detach()
    for value in (0.1, 0.5, 0.9):
        stretched = (value - mask.gamma) / (mask.zeta - mask.gamma)
        below = 1 / (1 + math.exp(-(mask.beta * math.log(stretched / (1 - stretched)) - 0.4)))
        assert float((sample <= value).double().mean()) == pytest.approx(below, abs=0.005)


def test_hard_concrete_is_deterministic_in_evaluation_and_ends_at_zero_and_one() -> None:
    mask = HardConcrete(GROUPS[:1])
    with torch.no_grad():
        mask.logits[0].copy_(torch.tensor([-9.0, -2.5, -2.3, 0.0, 2.3, 2.5]))
    mask.eval()
    value = mask()["block.0.heads"]
    assert_same(value, mask()["block.0.heads"])
    assert value[:2].tolist() == [0, 0] and value[5] == 1
    torch.testing.assert_close(value[2:5], torch.sigmoid(mask.logits[0][2:5]) * 1.2 - 0.1)
    assert mask.keep()["block.0.heads"].tolist() == [False, False, True, True, True, True]


def test_a_resumed_mask_draws_what_the_uninterrupted_one_draws() -> None:
    mask = with_logits(HardConcrete(GROUPS, seed=5))
    mask()
    state = copy.deepcopy(mask.state_dict())
    expected = [mask(), mask()]
    resumed = HardConcrete(GROUPS, seed=9)
    resumed.load_state_dict(state)
    assert_same(expected, [resumed(), resumed()])
    assert not torch.equal(expected[0]["block.0.channels"], expected[1]["block.0.channels"])


def test_draws_depend_on_the_seed() -> None:
    assert not torch.equal(many(0.0, 1)()["units"], many(0.0, 2)()["units"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StraightThrough(GROUPS, threshold=0.0), "threshold"),
        (lambda: Sigmoid(GROUPS, threshold=1.0), "threshold"),
        (lambda: HardConcrete(GROUPS, gamma=0.1), "gamma < 0"),
        (lambda: HardConcrete(GROUPS, beta=0.0), "beta > 0"),
        (lambda: Sigmoid([]), "no group is given"),
        (lambda: Sigmoid([*GROUPS, UnitGroup("empty", 0, ())]), r"\['empty'\]"),
    ],
)
def test_wrong_parameters_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_mask
def test_a_trained_mask_drops_the_neurons_that_do_nothing(make: Callable[..., TrainableMask]) -> None:
    """Of 12 neurons 4 carry an output each: trained with the penalty, the mask finds them; hardened, the output stays.

    What is wanted is beyond the network, as a photograph is: compared with itself a network has no gradient at a mask
    of ones, and units sink until they are off, and come back.
    """
    data = regression()
    target = Perceptron.random(5, 12, 4, seed=1)
    second = torch.zeros_like(target.second)
    second[[0, 1, 2, 3], [1, 4, 6, 11]] = 2.0
    target, useful = replace(target, second=second), second.any(dim=0)
    output: Tensor = target(data.inputs)
    mask = make(target.groups())
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        with target.masked(mask()):
            loss = (target(data.inputs) - 1.3 * output).square().mean()
        (loss + 0.03 * mask.penalty()).backward()
        optimizer.step()
    keep = mask.keep()["layer.hidden"]
    assert torch.equal(keep, useful)
    assert torch.equal(mask.keep(Budget(limit=4))["layer.hidden"], useful)
    torch.testing.assert_close(target.cut({"layer.hidden": keep})(data.inputs), output)
