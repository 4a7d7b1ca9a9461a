"""EcoDiff finds the units that final latents do not need, and its gates harden to exact budgets."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.estimate import saved_bytes
from diffusion.inputs import example_inputs
from diffusion.masks import EcoDiff, ExpectedBudget, ExpectedCost, LogAlphaNorm, Pressure
from diffusion.recomputing import recomputed_blocks
from diffusion.units import Kind, prunable
from secateur.allocation import Budget, allocate
from secateur.importance import Random
from secateur.importance.objective import mask_of_ones
from secateur.masks import HardConcrete
from secateur.metrics.memory import measure_peak_memory
from secateur.surgery import Network
from secateur.surgery.cost import count_params
from secateur.surgery.network import rows_of
from secateur.surgery.reorder import reordered
from secateur.units import Keep, Scores, UnitGroup
from tests.contracts import (
    assert_deterministic,
    assert_exact_budget,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)
from tests.diffusion.models import FAMILIES, inputs, random_model
from tests.diffusion.trajectories import trajectories

SHORT: dict[str, Any] = {"steps": 4, "batch_size": 2}
WITHOUT_NOISE = 1e9
"""An `eps` that leaves the gates nothing to draw."""


def dit() -> Network:
    return prunable(random_model("dit"), example_inputs=inputs("dit"))


def half_planted() -> tuple[Network, Keep]:
    """A DiT half of whose heads and neurons nobody reads; and which are read."""
    network, read = prunable(random_model("dit", num_layers=1)), {}
    tensors = dict(network.module.named_parameters())
    for number, group in enumerate(network.groups()):
        order = torch.randperm(group.size, generator=torch.Generator().manual_seed(number))
        read[group.name] = torch.zeros(group.size, dtype=torch.bool).index_fill(0, order[: group.size // 2], True)
        reader = next(member for member in group.members if member.dim == 1)
        with torch.no_grad():
            tensors[reader.param][:, rows_of(reader, group.size)[~read[group.name]].flatten()] = 0
    return network, read


def found(keep: Keep, read: Keep) -> float:
    """The share of the units that are read which was kept."""
    return sum(int((keep[name] & read[name]).sum()) for name in read) / sum(int(mask.sum()) for mask in read.values())


def assert_finds_heads(scores: Scores, network: Network, read: Keep) -> None:
    heads = [group for group in network.groups() if group.name.endswith("heads")]
    assert heads
    for group in heads:
        assert_same(allocate(scores, [group], Budget(share=0.5))[group.name], read[group.name])


@pytest.mark.parametrize(
    ("pressure", "least"), [(ExpectedBudget(share=0.5, fall=0.8), 0.9), (ExpectedCost(0.1, "params"), 1.0)]
)
def test_units_that_nobody_reads_go_first(pressure: Pressure, least: float) -> None:
    network, read = half_planted()
    calibration = trajectories(count=8, steps=3, name="flow_euler")
    scores = EcoDiff(pressure, rate=0.2, steps=40).score(network, calibration)
    keep = allocate(scores, network.groups(), Budget(share=0.5))
    assert found(keep, read) >= least
    assert_finds_heads(scores, network, read)
    everything = torch.arange(8)
    whole, cut = (calibration.sample(each.module, everything) for each in (network, network.cut(keep)))
    at_random = allocate(Random().score(network), network.groups(), Budget(share=0.5))
    other = calibration.sample(network.cut(at_random).module, everything)
    assert float((cut - whole).square().mean()) < 0.1 * float((other - whole).square().mean())


def test_the_released_penalty_finds_heads_that_nobody_reads() -> None:
    network, read = half_planted()
    calibration = trajectories(count=8, steps=3, name="flow_euler")
    scores = EcoDiff(LogAlphaNorm(), eps=0.5, rate=0.2, steps=30).score(network, calibration)
    assert_finds_heads(scores, network, read)


@pytest.mark.parametrize("cost", ["units", "params", "macs"])
def test_budgets_are_exact_and_masks_equal_cuts(cost: str) -> None:
    network, calibration = dit(), trajectories(steps=3)
    scores = EcoDiff(ExpectedCost(0.1, cost), **SHORT).score(network, calibration)
    groups = network.groups()
    for share in (0.2, 0.8, 1.0):
        budget = Budget(share=share, cost=cost)
        assert_exact_budget(allocate(scores, groups, budget), groups, budget)
    keep = allocate(scores, groups, Budget(share=0.6, cost=cost))
    small = network.cut(keep)
    removed = sum(float(group.cost["params"][~keep[group.name]].sum()) for group in groups)
    assert count_params(small.module) == count_params(network.module) - removed
    with network.masked({name: mask.float() for name, mask in keep.items()}):
        masked = calibration.sample(network.module, torch.arange(4))
    torch.testing.assert_close(calibration.sample(small.module, torch.arange(4)), masked, rtol=1e-4, atol=1e-4)


def test_kinds_may_have_budgets_of_their_own() -> None:
    network = dit()
    scores = EcoDiff(**SHORT).score(network, trajectories(steps=2))
    for kind, share in [("heads", 0.68), ("neurons", 0.88)]:
        groups = [group for group in network.groups() if group.name.endswith(kind)]
        assert_exact_budget(allocate(scores, groups, Budget(share=share)), groups, Budget(share=share))


@pytest.mark.parametrize("pressure", [ExpectedBudget(0.5), ExpectedCost(), LogAlphaNorm()])
def test_criterion_keeps_its_contracts(pressure: Pressure) -> None:
    network, calibration = dit(), trajectories(steps=2)
    network.module.train()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    scores = assert_deterministic(partial(EcoDiff(pressure, **SHORT).score, network, calibration))
    assert_scores_fit(scores, network.groups())
    assert_same(before, dict(network.module.state_dict()))
    assert network.module.training and all(parameter.requires_grad for parameter in network.module.parameters())
    assert not any((value == 3.0).any() for value in scores.values())


def test_scores_permute_with_the_units() -> None:
    calibration = trajectories(steps=2)
    criterion = EcoDiff(ExpectedCost(), initial=0.0, eps=WITHOUT_NOISE, **SHORT)
    network = dit()
    for name in ("transformer_blocks.0.attn1.heads", "transformer_blocks.1.ff.neurons"):
        assert_permutes(
            lambda target: criterion.score(target, calibration),
            network,
            lambda target, order: reordered(target, {name: order}),  # noqa: B023  called at once
            name,
            atol=1e-3,
        )


def test_without_penalty_or_steps_everything_stays() -> None:
    network, calibration = dit(), trajectories(steps=2)
    for criterion in (EcoDiff(steps=0), EcoDiff(ExpectedCost(0.0), eps=0.5, **SHORT)):
        mask, _ = criterion.fit(network, calibration)
        assert all(bool(kept.all()) for kept in mask.keep().values())
    scores = EcoDiff(steps=0).score(network, calibration)
    assert all(bool((value == 3.0).all()) for value in scores.values())
    # Gates that are all open are the whole model, so that nothing moves them.
    _, record = EcoDiff(ExpectedCost(0.0), eps=WITHOUT_NOISE, **SHORT).fit(network, calibration)
    assert [loss for _, loss in record.losses] == [0.0] * 4


def test_micro_batches_change_nothing_but_the_draws() -> None:
    network, calibration = dit(), trajectories(steps=2)
    losses = []
    for micro_batch in (None, 3, 1):
        criterion = EcoDiff(ExpectedCost(), initial=0.0, eps=WITHOUT_NOISE, steps=3, micro_batch=micro_batch)
        _, record = criterion.fit(network, calibration)
        losses.append([loss for _, loss in record.losses])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("family", ["unet", "dit", "flux"])
def test_blocks_that_are_run_again_change_nothing(family: str) -> None:
    kinds: tuple[Kind, ...] = ("heads", "neurons", "attentions") if family == "dit" else ("heads", "neurons")
    network = prunable(random_model(family), kinds, inputs(family))
    calibration = trajectories(family, count=2, steps=2, name="flow_euler")
    held, again = (
        EcoDiff(steps=2, batch_size=2, recompute_blocks=again).score(network, calibration) for again in (False, True)
    )
    for name, logits in held.items():
        assert not bool((logits == logits[0]).all()) or len(logits) == 1
        torch.testing.assert_close(again[name], logits, rtol=1e-4, atol=1e-5)
    assert not network.module.is_gradient_checkpointing  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_blocks_that_are_run_again_hold_less(family: str) -> None:
    with torch.device("meta"):
        model = FAMILIES[family]()
    arguments = example_inputs(model, size=16)
    network = prunable(model, ("heads", "neurons"), arguments)
    model.requires_grad_(False)
    with torch.no_grad():
        plain = peak_of(lambda: model(**arguments))
    saved = {again: saved_bytes(network, again) for again in (False, True)}
    assert saved[True] < 0.6 * saved[False]
    for again, bytes_saved in saved.items():
        masks = mask_of_ones(network)
        masked = partial(network.masked, masks)

        def step(again: bool = again, masks: Mapping[str, Tensor] = masks, masked: Any = masked) -> None:
            with masked(), recomputed_blocks(model, masked) if again else nullcontext():
                output = model(**arguments, return_dict=False)[0]
            torch.autograd.grad(output.square().mean(), [*masks.values()])

        assert bytes_saved < peak_of(step) < 1.1 * (bytes_saved + plain), again


def peak_of(step: Callable[[], Any]) -> int:
    return measure_peak_memory(step, torch.device("meta")).bytes


@pytest.mark.parametrize(
    ("family", "name"), [("unet", "dpm_multistep"), ("sdxl", "euler"), ("sd3", "flow_euler"), ("flux", "flow_euler")]
)
def test_other_models_and_samplers_with_few_steps(family: str, name: str) -> None:
    network = prunable(random_model(family))
    calibration = trajectories(family, count=2, steps=2, name=name, guidance=2.0)
    scores = EcoDiff(steps=2, batch_size=2).score(network, calibration)
    assert_scores_fit(scores, network.groups())


def test_a_stopped_fit_goes_on_where_it_was(tmp_path: Path) -> None:
    network, calibration, path = dit(), trajectories(steps=2), tmp_path / "gates.ckpt"
    criterion = EcoDiff(ExpectedBudget(0.5), steps=6, batch_size=2)
    whole, _ = criterion.fit(network, calibration)
    struck: list[str] = []

    def strike(done: float, doing: str) -> None:
        if done > 0.5 and not struck:
            struck.append(doing)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped after step"):
        criterion.fit(network, calibration, checkpoint=path, report=strike)
    resumed, record = criterion.fit(network, calibration, checkpoint=path, resume=True)
    assert record.steps == 6
    assert_same([*whole.logits], [*resumed.logits])
    with pytest.raises(ValueError, match="options was"):
        EcoDiff(steps=6, batch_size=2).fit(network, calibration, checkpoint=path, resume=True)


def test_rates_by_kind() -> None:
    network, calibration = dit(), trajectories(steps=2)
    scores = EcoDiff(ExpectedCost(), rate={"heads": 0.5, "neurons": 1e-6}, **SHORT).score(network, calibration)
    for name, value in scores.items():
        moved = float((value - 3.0).abs().max())
        assert moved > 0.1 if name.endswith("heads") else moved < 1e-4
    with pytest.raises(ValueError, match="no rate for units of kind 'neurons'"):
        EcoDiff(rate={"heads": 0.5}, **SHORT).score(network, calibration)


GROUPS = (
    UnitGroup("a.heads", 4, (), {"macs": torch.full((4,), 10.0)}),
    UnitGroup("a.neurons", 30, (), {"macs": torch.ones(30)}),
)


def gates(logits: Mapping[str, Tensor]) -> HardConcrete:
    mask = HardConcrete(GROUPS)
    with torch.no_grad():
        for group, each in zip(mask.groups, mask.logits, strict=True):
            each.copy_(logits[group.name])
    return mask


def test_penalties_are_their_formulas() -> None:
    source = torch.Generator().manual_seed(0)
    logits = {group.name: 2 * torch.randn(group.size, generator=source) for group in GROUPS}
    mask = gates(logits)
    means = [value.abs().sum() / len(value) for value in logits.values()]
    torch.testing.assert_close(LogAlphaNorm(0.5).penalty(mask).detach(), 0.5 * sum(means) / 2)
    torch.testing.assert_close(ExpectedCost(3.0, "macs").penalty(mask), 3.0 * mask.penalty("macs"))
    budget = ExpectedBudget(0.2, "macs", fall=0.5)
    held = budget.gates(GROUPS, seed=1)
    for progress, fallen in [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)]:
        budget.hold(held, progress)
        assert float(held.penalty("macs")) == pytest.approx(held.first_share - fallen * (held.first_share - 0.2))
        assert float(budget.penalty(held)) == 0.0


def test_noise_of_released_gates_is_bounded() -> None:
    group = UnitGroup("a.heads", 10_000, ())
    bound = torch.sigmoid(torch.tensor([-1.0, 1.0]) * torch.log(torch.tensor(3.0)) / (2 / 3))
    values = HardConcrete([group], gamma=-1e-9, zeta=1 + 1e-9, initial=0.0, eps=0.5)()["a.heads"].detach()
    assert float(values.min()) == pytest.approx(float(bound[0]), abs=1e-3)
    assert float(values.max()) == pytest.approx(float(bound[1]), abs=1e-3)


def test_latents_that_are_not_finite_name_the_step() -> None:
    network, calibration = dit(), trajectories(steps=3)
    with torch.no_grad():
        network.module.get_parameter("proj_out_2.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite after step 1 of 3 \(time step 999\)"):
        EcoDiff(**SHORT).score(network, calibration)


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="needs Trajectories"):
        EcoDiff().score(dit())
    with pytest.raises(ValueError, match="rates above 0"):
        EcoDiff(rate={"heads": 0.0})
    with pytest.raises(ValueError, match="share in"):
        ExpectedBudget(share=1.5)
    with pytest.raises(ValueError, match="eps >= 0"):
        HardConcrete(GROUPS, eps=-1.0)
