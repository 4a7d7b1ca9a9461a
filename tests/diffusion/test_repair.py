"""Repair makes up for what was cut, by what layers see at each step, and changes nothing where nothing was cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.repair import logarithmic_decrease, repair
from diffusion.units import prunable
from secateur.allocation import Budget, allocate
from secateur.importance import Magnitude
from secateur.recovery.refit import ObsRefit
from secateur.surgery import Network
from tests.diffusion.models import inputs, random_model
from tests.diffusion.trajectories import trajectories

KINDS: dict[str, Any] = {
    "dit": ("heads", "neurons"),
    "sd3": ("heads", "neurons"),
    "flux": ("heads", "neurons"),
    "unet": ("heads", "neurons", "channels"),
}


def halved(family: str, **changes: Any) -> tuple[nn.Module, Network]:
    """A dense model, and half of each of its groups."""
    dense = random_model(family, **changes)
    target = prunable(dense, KINDS[family])
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in target.groups()}
    return dense, target.cut(keep)


def latents(model: nn.Module, family: str) -> Tensor:
    return trajectories(family).sample(model, torch.arange(4))


@pytest.mark.parametrize("family", list(KINDS))
def test_layers_come_nearer_to_what_they_gave(family: str) -> None:
    dense, pruned = halved(family)
    before = copy.deepcopy(pruned)
    whole = {name: value.clone() for name, value in dense.state_dict().items()}
    repaired = repair(pruned, dense, trajectories(family))
    readers = {name.removesuffix(".weight") for name, dim in pruned.cuts.rows if dim == 1}
    assert set(repaired) == readers
    seen = _seen(dense, repaired, lambda: latents(dense, family))
    for name in repaired:
        x, y = seen[name]
        kept = pruned.cuts.rows[f"{name}.weight", 1].rows
        x = x[:, kept] if isinstance(dense.get_submodule(name), nn.Conv2d) else x[..., kept]
        errors = [
            float((network.module.get_submodule(name)(x) - y).detach().square().mean()) for network in (pruned, before)
        ]
        assert errors[0] < 0.9 * errors[1]
    untouched = set(before.module.state_dict()) - {f"{name}.{part}" for name in repaired for part in ("weight", "bias")}
    state = pruned.module.state_dict()
    assert all(torch.equal(state[name], before.module.state_dict()[name]) for name in untouched)
    assert all(torch.equal(value, whole[name]) for name, value in dense.state_dict().items())


def test_a_neuron_that_another_copies_costs_nothing() -> None:
    dense = random_model("dit", num_layers=1)
    block: Any = dense.transformer_blocks[0]  # type: ignore[index]
    with torch.no_grad():
        for parameter in (block.ff.net[0].proj.weight, block.ff.net[0].proj.bias):
            parameter[5] = parameter[3]
    target = prunable(dense, ("neurons",))
    keep = {group.name: torch.arange(group.size) != 5 for group in target.groups()}
    pruned = target.cut(keep)
    assert float((latents(pruned.module, "dit") - latents(dense, "dit")).abs().max()) > 1e-2
    repair(pruned, dense, trajectories("dit"), ObsRefit(1e-7))
    assert torch.allclose(latents(pruned.module, "dit"), latents(dense, "dit"), atol=1e-3)


def test_a_neuron_that_never_changes_goes_into_the_bias() -> None:
    dense = random_model("dit", num_layers=1)
    block: Any = dense.transformer_blocks[0]  # type: ignore[index]
    with torch.no_grad():
        block.ff.net[0].proj.weight[7], block.ff.net[0].proj.bias[7] = 0, 1.5
    target = prunable(dense, ("neurons",))
    pruned = target.cut({group.name: torch.arange(group.size) != 7 for group in target.groups()})
    repair(pruned, dense, trajectories("dit"), ObsRefit(1e-7))
    assert torch.allclose(latents(pruned.module, "dit"), latents(dense, "dit"), atol=1e-3)


def test_what_was_not_cut_stays_bit_for_bit() -> None:
    dense = random_model("dit")
    target = prunable(dense)
    whole = target.cut({group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()})
    assert repair(whole, dense, trajectories("dit")) == ()
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in whole.module.state_dict().items())


def test_packages_of_layers_give_the_same_and_patterns_choose() -> None:
    dense, together = halved("dit")
    apart, some = copy.deepcopy(together), copy.deepcopy(together)
    names = repair(together, dense, trajectories("dit"), batch_size=4)
    calls: list[float] = []
    assert (
        repair(apart, dense, trajectories("dit"), batch_size=4, memory_bytes=1, report=lambda d, _: calls.append(d))
        == names
    )
    assert len(calls) == len(names) and calls == sorted(calls)
    for name, value in together.module.state_dict().items():
        assert torch.equal(value, apart.module.state_dict()[name])
    assert repair(some, dense, trajectories("dit"), layers=["*.to_out.0"]) == tuple(n for n in names if "to_out" in n)
    with pytest.raises(ValueError, match=r"'\*\.nothing' matches none of 4 layers"):
        repair(some, dense, trajectories("dit"), layers=["*.nothing"])


def test_weights_of_steps_move_the_solution_to_those_steps() -> None:
    dense, pruned = halved("dit", num_layers=1)
    only = {step: copy.deepcopy(pruned) for step in (0, 3)}
    for step, network in only.items():
        repair(network, dense, trajectories("dit"), weights=lambda now, steps, step=step: float(now == step))
    name = "transformer_blocks.0.ff.net.2"
    inputs_at: list[Tensor] = []
    handle = dense.get_submodule(name).register_forward_hook(lambda _, args, out: inputs_at.append((args[0], out)))
    latents(dense, "dit")
    handle.remove()
    kept = pruned.cuts.rows[f"{name}.weight", 1].rows

    def error(network: Network, step: int) -> float:
        x, y = inputs_at[step]
        return float((network.module.get_submodule(name)(x[..., kept]) - y).detach().square().mean())

    assert error(only[0], 0) < error(only[3], 0)
    assert error(only[3], 3) < error(only[0], 3)


def test_the_logarithmic_decrease() -> None:
    weights = [logarithmic_decrease(step, 10) for step in range(10)]
    assert weights[0] == 1 and weights[-1] == pytest.approx(0.1)
    drops = [before - after for before, after in pairwise(weights)]
    assert all(drop > 0 for drop in drops) and drops == sorted(drops, reverse=True)
    assert logarithmic_decrease(0, 1) == 1


def test_another_model_is_refused() -> None:
    _, pruned = halved("dit")
    with pytest.raises(ValueError, match="it is not what was cut"):
        repair(pruned, random_model("unet"), trajectories("dit"))


def test_the_same_again() -> None:
    dense, first = halved("dit")
    second = copy.deepcopy(first)
    for network in (first, second):
        repair(network, dense, trajectories("dit"))
    assert all(
        torch.equal(value, second.module.state_dict()[name]) for name, value in first.module.state_dict().items()
    )


def test_twice_cut_is_repaired_from_the_whole() -> None:
    dense, once = halved("dit")
    target = prunable(once.module, example_inputs=inputs("dit"), cuts=once.cuts)
    twice = target.cut(allocate(Magnitude().score(target), target.groups(), Budget(share=0.7)))
    before = float((latents(twice.module, "dit") - latents(dense, "dit")).square().mean())
    repair(twice, dense, trajectories("dit"))
    assert float((latents(twice.module, "dit") - latents(dense, "dit")).square().mean()) < before


def _seen(model: nn.Module, names: tuple[str, ...], run: Callable[[], Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of each layer, over all calls."""
    held: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: held[name].append((args[0], output))
        )
        for name in names
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return {name: (torch.cat([x for x, _ in each]), torch.cat([y for _, y in each])) for name, each in held.items()}
