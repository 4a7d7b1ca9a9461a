from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.noising import Noising
from diffusion.scores import LatentSet, LatentShift
from diffusion.taylor import DiffPruning, InformativeSteps, PredictionLoss
from diffusion.units import prunable
from secateur.allocation import Budget, allocate
from secateur.greedy import Stage, prune_greedily
from secateur.importance import Taylor
from secateur.surgery import Network
from secateur.surgery.cut import Block
from secateur.units import Member, UnitGroup
from tests.contracts import assert_deterministic, assert_permutes, assert_same, assert_scores_fit
from tests.diffusion.models import random_model
from tests.diffusion.trajectories import trajectories

SEEDS = tuple(range(12))


class Operators(nn.Module):
    """Three residual operators and a hidden layer: a denoiser of 4 numbers."""

    def __init__(self, gains: Sequence[float] = (1.0, 0.3, 0.0)) -> None:
        super().__init__()
        self.operators = nn.ModuleList(nn.Linear(4, 4) for _ in gains)
        self.up = nn.Linear(4, 6)
        self.down = nn.Linear(6, 4)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
            for operator, gain in zip(self.operators, gains, strict=True):
                operator.weight *= gain
                operator.bias *= gain

    def forward(self, x: Tensor) -> Tensor:
        for operator in self.operators:
            x = x + operator(x)
        return x - self.down(torch.tanh(self.up(x)))


def network(gains: Sequence[float] = (1.0, 0.3, 0.0), hidden: Tensor | None = None) -> Network:
    """Its operators as blocks, its hidden units as units, in the order of `hidden`."""
    with torch.random.fork_rng():
        model = Operators(gains)
    rows = torch.arange(6)[:, None] if hidden is None else hidden[:, None]
    members = (Member("up.weight", 0, rows), Member("up.bias", 0, rows), Member("down.weight", 1, rows))
    blocks = [Block(f"operators.{index}") for index in range(len(gains))]
    groups = [UnitGroup("operators", len(gains), (), min_keep=0), UnitGroup("hidden", 6, members)]
    return Network(model, groups, torch.zeros(1, 4), blocks={"operators": blocks})


def only(name: str, gains: Sequence[float] = (1.0, 0.3, 0.0)) -> Network:
    """The same, where only one of the groups can be pruned."""
    whole = network(gains)
    groups = [group for group in whole.groups() if group.name == name]
    return Network(whole.module, groups, blocks={key: units for key, units in whole.blocks.items() if key == name})


def sample(target: Any, seeds: Sequence[int]) -> Tensor:
    """Three steps from the noise of each seed."""
    x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    for _ in range(3):
        x = x - 0.2 * target(x)
    return x


def test_an_operator_that_does_nothing_scores_0_and_goes_first():
    target, latents = network(), LatentSet(sample, SEEDS)
    scores = LatentShift().score(target, latents)
    assert_scores_fit(scores, target.groups())
    assert scores["operators"][2] == 0
    assert scores["operators"][0] > scores["operators"][1] > 0
    keep = allocate({"operators": scores["operators"]}, only("operators").groups(), Budget(limit=2))
    assert keep["operators"].tolist() == [True, True, False]


def test_both_norms_are_those_of_the_cut_networks_latents():
    target, latents = network(), LatentSet(sample, SEEDS, batch_size=5)
    shifts = LatentShift().shifts(target, latents)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    keep["operators"][0] = False
    dense, cut = sample(target, SEEDS).double(), sample(target.cut(keep), SEEDS).double()
    torch.testing.assert_close(shifts["operators"].mean[0], (dense.mean(0) - cut.mean(0)).norm().detach())
    torch.testing.assert_close(shifts["operators"].std[0], (dense.std(0) - cut.std(0)).norm().detach())
    assert shifts["operators"].total[0] == shifts["operators"].mean[0] + shifts["operators"].std[0]


def test_the_order_of_the_seeds_does_not_count_and_the_same_seeds_shift_nothing():
    target = network()
    forth, back = LatentSet(sample, SEEDS), LatentSet(sample, SEEDS[::-1], batch_size=5)
    one, other = LatentShift().score(target, forth), LatentShift().score(target, back)
    torch.testing.assert_close(one["operators"], other["operators"], rtol=1e-6, atol=1e-6)
    assert forth.shift_from(target)(target) == 0


def test_scores_permute_with_the_units_and_are_deterministic():
    latents = LatentSet(sample, SEEDS)
    assert_permutes(
        lambda target: LatentShift().score(target, latents),
        network(),
        lambda _, order: network(hidden=order),
        "hidden",
    )
    assert_deterministic(lambda: LatentShift().score(network(), latents))


def test_each_unit_costs_one_generation_of_all_latents():
    target, calls = network(), []

    def counted(target: Any, seeds: Sequence[int]) -> Tensor:
        calls.append(len(seeds))
        return sample(target, seeds)

    latents, criterion = LatentSet(counted, SEEDS, batch_size=5), LatentShift()
    criterion.score(target, latents)
    assert len(calls) == criterion.generations(target.groups(), latents) == (1 + 3 + 6) * 3


def test_the_floor_shrinks_with_more_latents():
    target, criterion = network(), LatentShift()
    few = criterion.floor(target, LatentSet(sample, tuple(range(8))), range(100, 108))
    many = criterion.floor(target, LatentSet(sample, tuple(range(256))), range(1000, 1256))
    assert 0 < many[0] < few[0] and 0 < many[1] < few[1]
    with pytest.raises(ValueError, match="not the calibration's"):
        criterion.floor(target, LatentSet(sample, SEEDS), SEEDS)


def singles(gains: Sequence[float]) -> Network:
    """Each operator a group of its own."""
    whole = only("operators", gains)
    blocks = {block.module: [block] for block in whole.blocks["operators"]}
    rows = torch.arange(4)[None]
    groups = [UnitGroup(name, 1, (Member(f"{name}.weight", 0, rows),), min_keep=0) for name in blocks]
    return Network(whole.module, groups, blocks=blocks)


def test_greedy_removal_scores_again_after_each_removal():
    """Either of the first two operators may go alone, but not both: without one, the other turns the latents over."""
    target, latents = singles((1.0, 1.0, 0.0)), LatentSet(sample, SEEDS)
    first, second = target.module.operators[:2]
    with torch.no_grad():
        for operator, gain in ((first, -2.0), (second, -2.0)):
            operator.weight.copy_(gain * torch.eye(4))
            operator.bias.fill_(0)
    small, steps = prune_greedily(target, [Stage(lambda group: True, 1, cost="units")], latents.shift_from(target))
    assert [(step.group, step.measured) for step in steps] == [("operators.2", 0.0)]
    _, steps = prune_greedily(target, [Stage(lambda group: True, 2, cost="units")], latents.shift_from(target))
    alone = LatentShift().score(target, latents)
    assert steps[1].measured == pytest.approx(min(float(alone[f"operators.{index}"]) for index in range(2)))
    assert latents.shift_from(target)(small) == pytest.approx(0, abs=1e-5)


def test_latents_that_are_not_finite():
    def broken(target: Any, seeds: Sequence[int]) -> Tensor:
        return sample(target, seeds) / 0

    with pytest.raises(ValueError, match="48 of 48 values of the whole model's latents are not finite"):
        LatentShift().score(network(), LatentSet(broken, SEEDS))

    def broken_without(target: Any, seeds: Sequence[int]) -> Tensor:
        latents = sample(target, seeds)
        return latents if torch.equal(latents, sample(network(), seeds)) else latents * torch.nan

    scores = LatentShift().score(network((1.0, 0.3)), LatentSet(sample, SEEDS))
    assert bool(torch.isfinite(scores["operators"]).all())
    scores = LatentShift().score(network(), LatentSet(broken_without, SEEDS))
    assert scores["operators"].tolist() == [torch.inf, torch.inf, 0.0]


def test_bad_calibration():
    with pytest.raises(ValueError, match="at least 2 different seeds"):
        LatentSet(sample, (1, 1))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        LatentSet(sample, SEEDS, batch_size=0)
    with pytest.raises(ValueError, match="gave 1 latents for 12 seeds"):
        LatentSet(lambda target, seeds: torch.zeros(1, 4), SEEDS).latents(network())
    with pytest.raises(ValueError, match="needs a LatentSet"):
        LatentShift().score(network())


def noising(steps: int = 10, prediction: str = "epsilon") -> Noising:
    signal = torch.linspace(0.99, 0.01, steps, dtype=torch.float64)
    return Noising(signal.sqrt(), (1 - signal).sqrt(), torch.arange(steps), prediction)  # type: ignore[arg-type]


def predict(target: Any, noisy: Tensor, timesteps: Tensor) -> Tensor:
    return target(noisy) * (1 + timesteps[:, None] / 10)


def clean() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(7))


def test_the_walk_stops_at_the_first_step_that_tells_little():
    values = [1.0, 4.0, 2.0, 0.25, 3.0]

    def loss(target: Any, step: int) -> Tensor:
        return torch.tensor(values[step], requires_grad=True)

    def taken(threshold: float) -> list[float]:
        return [value.item() for value in InformativeSteps(loss, range(5), threshold).losses(None)]

    assert taken(0.1) == values[:3]
    assert taken(0.05) == values
    weighted = InformativeSteps(loss, range(5), 0.1, torch.tensor([2.0, 0.0, 1.0, 1.0, 1.0]))
    assert [value.item() for value in weighted.losses(None)] == [2.0, 0.0, 2.0]


def test_gradients_of_the_steps_are_added_before_the_absolute_value():
    target = only("hidden")
    steps = InformativeSteps(PredictionLoss(predict, clean(), noising()), range(10), threshold=0.0)
    scores = DiffPruning().score(target, steps)
    assert_scores_fit(scores, target.groups())

    class Together:
        def losses(self, target: Any) -> list[Tensor]:
            return [torch.stack(list(steps.losses(target))).sum()]

    torch.testing.assert_close(scores["hidden"], Taylor("elements").score(target, Together())["hidden"])
    apart = Taylor("elements").score(target, steps)["hidden"] * 10
    assert bool((apart >= scores["hidden"] - 1e-6).all()) and not torch.allclose(apart, scores["hidden"])
    assert all(not parameter.grad for parameter in target.module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_loss_of_a_step_is_the_noisings(prediction):
    kind, target = noising(prediction=prediction), network()
    loss = PredictionLoss(predict, clean(), kind, seed=2)
    noise = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    index = torch.full((5,), 3)
    wanted = kind.target(clean(), noise, index)
    expected = (predict(target, kind.add(clean(), noise, index), index) - wanted).square().mean()
    torch.testing.assert_close(loss(target, 3), expected)
    assert_deterministic(lambda: loss(target, 3).detach())


def test_bad_steps():
    loss = PredictionLoss(predict, clean(), noising())
    with pytest.raises(ValueError, match="must be a time step"):
        InformativeSteps(loss, [])
    with pytest.raises(ValueError, match="as many weights"):
        InformativeSteps(loss, range(3), weights=torch.ones(2))
    with pytest.raises(ValueError, match="threshold must be"):
        InformativeSteps(loss, range(3), threshold=1.5)


@pytest.mark.parametrize(("family", "kinds"), [("dit", ("attentions", "feed_forwards")), ("unet", ("stacks",))])
def test_whole_blocks_of_a_real_denoiser_along_its_trajectory(family, kinds):
    target, drawn = prunable(random_model(family), kinds), trajectories(family, count=4, steps=2)
    latents = LatentSet(lambda network, seeds: drawn.sample(network.module, torch.tensor(seeds)), tuple(range(4)))
    scores = LatentShift().score(target, latents)
    assert_scores_fit(scores, target.groups())
    assert all(bool((score > 0).all()) for score in scores.values())
    name = target.groups()[0].name
    keep = {group.name: torch.full((group.size,), group.name != name) for group in target.groups()}
    assert latents.shift_from(target)(target.cut(keep)) == pytest.approx(float(scores[name][0]), rel=1e-3)


def test_a_run_that_was_killed_goes_on_and_gives_the_same(tmp_path):
    target, file = network(), tmp_path / "shifts.json"
    calls: list[int] = []

    def killed(target: Any, seeds: Sequence[int]) -> Tensor:
        calls.append(len(seeds))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return sample(target, seeds)

    with pytest.raises(KeyboardInterrupt):
        LatentShift(file).score(target, LatentSet(killed, SEEDS))
    resumed = LatentShift(file).score(target, LatentSet(killed, SEEDS))
    assert len(calls) == 6 + 1 + (9 - 4)
    assert_same(resumed, LatentShift().score(target, LatentSet(sample, SEEDS)))
    with pytest.raises(ValueError, match="another model, calibration or unit map"):
        LatentShift(file).score(network((1.0, 0.5, 0.0)), LatentSet(sample, SEEDS))
    file.write_text("[]")
    with pytest.raises(ValueError, match="is no record of latent shifts"):
        LatentShift(file).score(target, LatentSet(sample, SEEDS))
