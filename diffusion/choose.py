"""Which units of a model go, by a recipe: looked up and tried on the meta device, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from diffusion.block_removal import remove_blocks
from diffusion.calibrate import read_prompts, scheduler_class
from diffusion.denoiser import without_variance
from diffusion.inputs import example_inputs
from diffusion.models import Source, find
from diffusion.recipe import Budget, DiffusionRecipe
from diffusion.units import prunable
from secateur.allocation import Budget as Limit
from secateur.allocation import allocate, allocate_per_group, unit_costs
from secateur.recipe import RecipeFile
from secateur.surgery.cost import run_example
from secateur.surgery.cut_cost import CutCost
from secateur.surgery.exact_budget import allocate_cut
from secateur.surgery.latency import UnitTimes
from secateur.surgery.network import Network
from secateur.surgery.plan import Plan, Size, measure, plan
from secateur.units import Keep, Scores, UnitGroup


@dataclass(frozen=True, eq=False)
class Target:
    """What a recipe may take units from.

    Args:
        source: the model.
        network: it and its units on the meta device, with the recipe's floors and example inputs of one sample.
        kinds: group name -> kind of its units.
        size: of the model as it is.
        student: the smaller network, where the recipe removes blocks as BK-SDM does; then there are no groups.
        expected: which units stay as far as that can be told before there are scores: exactly, where the recipe names
            what goes; otherwise every group loses the same share.
    """

    source: Source
    network: Network
    kinds: Mapping[str, str]
    size: Size
    expected: Keep
    student: Network | None = None

    @property
    def groups(self) -> Sequence[UnitGroup]:
        """The units."""
        return self.network.groups()

    def plan(self, keep: Keep | None = None) -> Plan:
        """The model before and after a choice of units; None: as it is expected."""
        if self.student is not None:
            return Plan(self.size, measure(self.student), {})
        return plan(self.network, self.expected if keep is None else keep)


def find_target(file: RecipeFile[DiffusionRecipe]) -> Target:
    """Find the model and its units, and try the budget out.

    Raises:
        FileNotFoundError: there is no such model, or no such file of prompts: with the recipe's line.
        ValueError: a pattern matches nothing, a kind is absent, a floor is above what there is, the budget cannot be
            met, there is no such scheduler, or the model takes no latents of that size: with the recipe's line.
    """
    recipe = file.recipe
    with file.blaming("model", "id"):
        source = find(recipe.model.id, recipe.model.component, recipe.model.revision)
        module = source.on_meta()
    _check_calibration(file)
    units = recipe.units
    tokens = source.architecture.text_tokens or 77
    inputs = example_inputs(module, size=recipe.calibration.size, text_tokens=tokens)
    if recipe.calibration.size is not None:
        with file.blaming("calibration", "size"):
            _check_size(module, inputs)
    if units.blocks is not None:
        network = Network(module, (), inputs)
        with file.blaming("units", "blocks"):
            student = remove_blocks(module, units.blocks)
        return Target(source, network, {}, measure(network), {}, Network(student.model, (), inputs))
    kinds: dict[str, str] = {}
    for index, kind in enumerate(units.kinds):
        with file.blaming("units", "kinds", index):
            for group in prunable(module, [kind], min_keep=units.min_keep).groups():
                kinds.setdefault(group.name, kind)
    for index, pattern in enumerate(units.modules if units.modules != ("*",) else ()):
        with file.blaming("units", "modules", index):
            prunable(module, units.kinds, modules=[pattern], min_keep=units.min_keep)
    with file.blaming("units"):
        network = prunable(module, units.kinds, inputs, modules=units.modules, min_keep=units.min_keep)
    with file.blaming("units", "min_keep"):
        _check_floor(units.min_keep, network.groups())
    network = floored(network, _floors(file, network))
    target = Target(source, network, kinds, measure(network), {})
    if units.drop:
        return replace(target, expected=dropped(file, target))
    with file.blaming("budget" if recipe.budget is not None else "experts"):
        return replace(target, expected=choose_evenly(target, recipe))


def _check_calibration(file: RecipeFile[DiffusionRecipe]) -> None:
    """Whether the prompts and the scheduler are there, which are read again when they are needed."""
    options = file.recipe.calibration
    with file.blaming("calibration", "prompts_file"):
        read_prompts(options)
    if options.scheduler is not None:
        with file.blaming("calibration", "scheduler"):
            scheduler_class(options.scheduler)


@torch.no_grad()
def _check_size(module: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Raise ValueError where the network does not give latents of the size that it is given."""
    latents = next(iter(inputs.values()))
    try:
        found = without_variance(run_example(module, {**inputs, "return_dict": False})[0], latents)
    except RuntimeError as error:
        raise ValueError(f"the model does not take latents of this size ({str(error).splitlines()[0]})") from error
    if latents.dim() == 4 and found.shape[2:] != latents.shape[2:]:
        given, made = (" x ".join(map(str, each.shape[2:])) for each in (latents, found))
        raise ValueError(
            f"the model takes latents of {given}, but gives ones of {made}: choose a multiple of its patches"
        )


def choose_evenly(target: Target, recipe: DiffusionRecipe) -> Keep:
    """Which units stay where none is worth more than another: every group loses the same share.

    Raises:
        ValueError: the budget cannot be met.
    """
    scores = {group.name: -torch.arange(group.size, dtype=torch.float32) for group in target.groups}
    asked = recipe.budget
    if recipe.experts is not None:
        asked = Budget(remove=1 - recipe.experts.pruning.share, cost="macs")
    assert asked is not None
    # Time is measured on loaded weights: until then, multiply-adds stand for it.
    budget = replace(asked, allocator=allocate_per_group)
    if budget.cost == "ms":
        if budget.limit is not None:
            return _everything(target.groups)
        budget = replace(budget, cost="macs")
    return choose(target, scores, budget)


def choose(target: Target, scores: Scores, budget: Budget, times: UnitTimes | None = None) -> Keep:
    """Which units stay.

    A budget of parameters, multiply-adds or bytes is met by the cut network itself, to within a unit. Shares of kinds,
    and time, are sums over units, each as if it went alone.

    Args:
        target: the model and its units.
        scores: group name -> (size,), the higher the better.
        budget: how much goes.
        times: of the loaded network and its units, for a budget of time.

    Raises:
        ValueError: the budget cannot be met with the floors that there are.
    """
    groups = list(target.groups)
    if budget.cost == "ms":
        assert times is not None, "a budget of time needs the units' times"
        groups = [replace(group, cost={**group.cost, "ms": times.units[group.name]}) for group in groups]
    if budget.by_kind:
        return _by_kind(target.kinds, groups, scores, budget)
    pool = sum(float(unit_costs(group, budget.cost).sum()) for group in groups)
    whole = float(getattr(target.size, budget.cost)) if times is None else times.whole
    gone = _gone(budget, whole, pool)
    if times is not None:
        return budget.allocator(scores, groups, Limit(limit=pool - gone, cost=budget.cost))
    # `allocate` takes units by score alone, as `allocate_cut` does by itself with fewer cuts to count.
    allocator = None if budget.allocator is allocate else budget.allocator
    return allocate_cut(target.network, scores, Limit(limit=whole - gone, cost=budget.cost), allocator)


def meets(target: Target, budget: Budget) -> Callable[[Keep], bool] | None:
    """Which units are left -> whether the cut network meets the budget; None for shares of kinds, and for time."""
    if budget.by_kind or budget.cost == "ms":
        return None
    pool = sum(float(unit_costs(group, budget.cost).sum()) for group in target.groups)
    whole = float(getattr(target.size, budget.cost))
    limit = (whole - _gone(budget, whole, pool)) * (1 + 1e-9)
    cost = CutCost(target.network, budget.cost)
    return lambda keep: cost(keep) <= limit


def _by_kind(kinds: Mapping[str, str], groups: Sequence[UnitGroup], scores: Scores, budget: Budget) -> Keep:
    """Which units stay where every kind loses a share of its own."""
    keep: Keep = {}
    for kind in dict.fromkeys(kinds.values()):
        own = [group for group in groups if kinds[group.name] == kind]
        share = 1 - budget.by_kind.get(kind, 0.0)
        if own:
            keep |= budget.allocator(scores, own, Limit(share=share, cost=budget.cost))
    return keep


def dropped(file: RecipeFile[DiffusionRecipe], target: Target) -> Keep:
    """Which units stay where a recipe names whole modules that go.

    Raises:
        ValueError: a pattern names no such module: with the recipe's line.
    """
    keep = _everything(target.groups)
    blocks = set(target.network.blocks)
    for index, pattern in enumerate(file.recipe.units.drop):
        hits = [name for name in keep if name in blocks and fnmatchcase(name, pattern)]
        if not hits:
            some = next(iter(blocks), None)
            hint = f", such as {some!r}" if some else f": units.kinds {file.recipe.units.kinds} have none"
            raise ValueError(
                f"{file.place('units', 'drop', index)}pattern {pattern!r} matches none of {len(blocks)} modules that "
                f"can go{hint}"
            )
        for name in hits:
            keep[name] = torch.zeros_like(keep[name])
    return keep


def _gone(budget: Budget, whole: float, pool: float) -> float:
    """What goes, in units of the cost."""
    if budget.limit is not None:
        gone = max(0.0, whole - budget.limit)
    else:
        assert budget.remove is not None
        gone = budget.remove * (whole if budget.of == "model" else pool)
    if gone > pool:
        raise ValueError(_too_much(budget, gone, whole, pool))
    return gone


def _too_much(budget: Budget, gone: float, whole: float, pool: float) -> str:
    return (
        f"{gone:,.6g} of the model's {whole:,.6g} {budget.cost} cannot go: the units that may go have {pool:,.6g} "
        f"({pool / whole:.1%}); ask for less, or allow more kinds and modules"
    )


def _floors(file: RecipeFile[DiffusionRecipe], network: Network) -> dict[str, int]:
    """Group name -> the recipe's floor, where it has one."""
    names = [group.name for group in network.groups()]
    floors: dict[str, int] = {}
    for pattern, floor in file.recipe.units.floors.items():
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            place = file.place("units", "floors", pattern)
            raise ValueError(f"{place}matches none of {len(names)} groups, such as {names[0]!r}")
        with file.blaming("units", "floors", pattern):
            _check_floor(floor, [group for group in network.groups() if group.name in set(hits)])
        floors |= dict.fromkeys(hits, floor)
    return floors


def _check_floor(floor: int, groups: Sequence[UnitGroup]) -> None:
    """Raise ValueError where none of the groups has as many units as shall stay."""
    largest = max(groups, key=lambda group: group.size)
    if floor > largest.size:
        raise ValueError(f"{floor} units cannot stay: the largest group, {largest.name!r}, has {largest.size}")


def floored(network: Network, floors: Mapping[str, int]) -> Network:
    """The network with other floors; a group that has to keep a unit keeps one at least.

    Args:
        network: it is not changed.
        floors: group name -> the fewest units that stay.
    """
    if not floors:
        return network
    may_go = network.emptied.keys() | network.blocks.keys()
    groups = [
        replace(group, min_keep=max(floors.get(group.name, group.min_keep), 0 if group.name in may_go else 1))
        for group in network.groups()
    ]
    return Network(
        network.module,
        groups,
        network.example_inputs,
        blocks=network.blocks,
        counts=network.counts,
        cuts=network.cuts,
        left_out=network.left_out,
        emptied=network.emptied,
        scattered=network.scattered,
        factors=network.factors,
    )


def _everything(groups: Sequence[UnitGroup]) -> Keep:
    return {group.name: torch.ones(group.size, dtype=torch.bool) for group in groups}
