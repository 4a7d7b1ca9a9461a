"""What the steps of a recipe take from a model: tried on the meta device, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocation import Budget as Limit
from secateur.allocation import allocate, allocate_per_group
from secateur.block_sparse import DENSE_FROM
from secateur.distortion import RateDistortion, measure_curves
from secateur.greedy import Stage, prune_greedily
from secateur.recipe import RecipeFile
from secateur.surgery.cost import measure_usage
from secateur.surgery.exact_budget import allocate_cut
from secateur.surgery.network import Network
from secateur.surgery.plan import Size, measure
from secateur.units import Keep, Scores, UnitGroup
from vit.demo import MODELS
from vit.inputs import example_inputs
from vit.models import Source, find
from vit.pruned import PrunedModel, TokenPlan, count_patches, drops_at
from vit.recipe import VitRecipe
from vit.steps import Budget, Greedy, GreedyStage, Static, Step, Tokens
from vit.tokens.schedule import Counts
from vit.units import Kind, prunable

_SLIM_KINDS: tuple[Kind, ...] = ("embedding", "heads", "neurons")
_DEMOS = ("fashion-vit",)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The model behind a step.

    Args:
        name: of the step.
        size: then; multiply-adds are those of one image, attention counted.
        units: group name -> (units that stay, units), of the steps that take units.
        tokens: patches that each layer is left with; None: all.
    """

    name: str
    size: Size
    units: Mapping[str, tuple[int, int]]
    tokens: tuple[int, ...] | None


@dataclass(frozen=True, eq=False)
class Target:
    """A model that was found, and what a recipe is expected to make of it.

    Args:
        source: the model.
        size: of it as it is.
        steps: the model behind each step where every group loses the same share: exact in cost, to within a unit.
    """

    source: Source
    size: Size
    steps: tuple[StepPlan, ...]


def find_target(file: RecipeFile[VitRecipe]) -> Target:
    """Find the model, and try the steps out.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no vision transformer, a pattern or kind is absent, a budget cannot be met, a schedule leaves
            a layer without patches: with the recipe's line.
    """
    recipe = file.recipe
    with file.blaming("model", "id"):
        source = find_model(recipe.model.id, recipe.model.architecture, recipe.model.revision)
        module = source.on_meta()
        network = prunable(module, _some_kind(module), example_inputs(module))
    plans = []
    pruned = PrunedModel(Network(network.module, (), network.example_inputs))
    for index, step in enumerate(recipe.steps):
        with file.blaming("steps", index, step.name):
            pruned, units = _tried(pruned, step)
            plans.append(StepPlan(step.name, size_of(pruned), units, tokens_of(pruned)))
    return Target(source, measure(network), tuple(plans))


def find_model(id: str, architecture: str | None = None, revision: str | None = None) -> Source:
    """Look a model up by its id: demo models by their names.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it describes no model of transformers.
    """
    return find(demo_folder(id), architecture=architecture, revision=revision)


def demo_folder(id: str) -> str:
    """The folder of a demo model of that name; any other id as it is.

    Raises:
        FileNotFoundError: it is a demo model's name, but the model is not among the package's files.
    """
    if id not in _DEMOS:
        return id
    if not (MODELS / id / "config.json").is_file():
        raise FileNotFoundError(f"{id}: the demo model is absent: scripts/train_demo_vit.py makes it")
    return str(MODELS / id)


def _some_kind(module: nn.Module) -> tuple[Kind, ...]:
    """Units that every vision transformer has; raises ValueError, which names what is missing, where there are none."""
    return ("heads",) if hasattr(module, "config") else ("neurons",)


def size_of(pruned: PrunedModel) -> Size:
    """Parameters, bytes and multiply-adds of one image as the model runs. Works on the meta device."""
    found = measure(Network(pruned.network.module, ()))
    running = replace(pruned, blocks={}).runnable()
    usage = measure_usage(running, example_inputs(pruned.network.module))
    macs, params, size = usage.macs, found.params, found.bytes
    prefix = "" if pruned.tokens is None else "model."
    for name, kept in pruned.blocks.items():
        gone = 1 - float(kept.double().mean())
        if 1 - gone < pruned.dense_from:
            weight = pruned.network.module.get_submodule(name).get_parameter("weight")
            elements = round(gone * weight.numel())
            macs -= elements * usage.products.get(f"{prefix}{name}.weight", 0.0)
            params, size = params - elements, size - elements * weight.element_size()
    return Size(params, size, round(macs))


def tokens_of(pruned: PrunedModel) -> tuple[int, ...] | None:
    """Patches that each layer is left with; None: all."""
    return None if pruned.tokens is None else pruned.counts(pruned.network.module)


def _tried(pruned: PrunedModel, step: Step) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
    """The model behind a step on the meta device, where all scores are equal."""
    if step.static is not None:
        network = units_of(pruned, step.static.kinds, step.static.modules, step.static.min_keep)
        return _cut_evenly(pruned, network, step.static.budget)
    if step.greedy is not None:
        kinds = tuple(dict.fromkeys(kind for stage in step.greedy.stages for kind in stage.kinds))
        network = units_of(pruned, kinds)
        small, _ = prune_greedily(network, greedy_stages(network, step.greedy), lambda _: 0.0, _Even())
        return pruned.with_network(small), kept_units(network, small)
    if step.slim is not None:
        kinds = ("embedding", step.slim.attention, "neurons")
        network = units_of(pruned, kinds)
        keep = allocate_per_group(_even(network), network.groups(), Limit(share=step.slim.share))
        return pruned.with_network(network.cut(keep)), _kept(keep)
    if step.blocks is not None:
        return _blocks_tried(pruned, step), {}
    if step.tokens is not None:
        tokens = token_plan(step.tokens, pruned.network.module)
        return replace(pruned, tokens=tokens), {}
    return pruned, {}


def _cut_evenly(
    pruned: PrunedModel, network: Network, budget: Budget
) -> tuple[PrunedModel, dict[str, tuple[int, int]]]:
    keep = allocate_cut(network, _even(network), limit_of(budget), allocate_per_group)
    return pruned.with_network(network.cut(keep)), _kept(keep)


def _blocks_tried(pruned: PrunedModel, step: Step) -> PrunedModel:
    assert step.blocks is not None
    method = step.blocks.method
    layers, _ = method.find_layers(pruned.network.module)
    keep = {}
    for name, layer in layers.items():
        grid = layer.out_features // method.rows, layer.in_features // method.columns
        mask = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
        mask[: max(method.min_keep, int(len(mask) * (1 - step.blocks.remove)))] = True
        keep[name] = mask.view(grid)
    # On the meta device all layers that lose blocks count as sparse ones, whose multiply-adds torch can tell.
    return replace(pruned, blocks=keep, dense_from=DENSE_FROM)


class _Even:
    """Scores of equal units."""

    def score(self, target: Any, calibration: Any = None, /) -> Scores:
        """The first units of each group stay."""
        return _even(target)


def _even(target: Any) -> Scores:
    return {group.name: -torch.arange(group.size, dtype=torch.float32) for group in target.groups()}


def _kept(keep: Keep) -> dict[str, tuple[int, int]]:
    return {name: (int(mask.sum()), len(mask)) for name, mask in keep.items()}


def kept_units(before: Network, after: Network) -> dict[str, tuple[int, int]]:
    """Group name -> (units that stay, units)."""
    left = {group.name: group.size for group in after.groups()}
    return {group.name: (left.get(group.name, 0), group.size) for group in before.groups()}


def units_of(pruned: PrunedModel, kinds: Sequence[Kind], modules: Sequence[str] = ("*",), min_keep: int = 1) -> Network:
    """The model's units; multiply-adds are counted on all tokens of one image.

    Raises:
        ValueError: a kind or pattern finds nothing.
    """
    module = pruned.network.module
    inputs, cuts = example_inputs(module), pruned.network.cuts
    return prunable(module, kinds, inputs, modules=modules, min_keep=min_keep, cuts=cuts)


def limit_of(budget: Budget) -> Limit:
    """What may stay."""
    share = None if budget.remove is None else 1 - budget.remove
    return Limit(share=share, limit=budget.limit, cost=budget.cost)


def choose(network: Network, scores: Scores, options: Static, run: Callable[[Any], Tensor]) -> Keep:
    """Which units stay, so that the cut network itself meets the budget.

    Args:
        network: with example inputs.
        scores: group name -> (size,), the higher the better.
        options: the recipe's.
        run: target -> its output on the calibration's images, for curves of distortion.

    Raises:
        ValueError: the budget cannot be met.
    """
    limit = limit_of(options.budget)
    if options.distortion is not None:
        curves = measure_curves(network, run, scores, options.distortion.levels)
        return allocate_cut(network, scores, limit, RateDistortion(curves, options.distortion.solver))
    # `allocate` takes units by score alone, as `allocate_cut` does by itself with fewer cuts to count.
    return allocate_cut(network, scores, limit, None if options.allocator is allocate else options.allocator)


def greedy_stages(network: Network, options: Greedy) -> list[Stage]:
    """The stages of a greedy search: what is gone after each is counted from the start of the first."""
    size = measure(network)
    whole = float(getattr(size, options.budget.cost))
    gone = options.budget.remove * whole if options.budget.remove is not None else whole - (options.budget.limit or 0)
    stages, share = [], 0.0
    for stage in options.stages:
        share += stage.share
        stages.append(Stage(_of(network, stage), max(0.0, gone * share), options.budget.cost, stage.chunk))
    return stages


def _of(network: Network, stage: GreedyStage) -> Callable[[UnitGroup], bool]:
    """Whether a group is of the stage's kinds: whole modules are named by themselves, other units by their kind."""
    named = {kind for kind in stage.kinds if kind in ("heads", "head_dims", "neurons", "embedding")}
    modules = set(stage.kinds) - named
    wanted = {group.name for kind in modules for group in prunable(network.module, (kind,), min_keep=0).groups()}
    return lambda group: group.name in wanted or group.name.rpartition(".")[2] in named


def token_plan(options: Tokens, module: nn.Module) -> TokenPlan:
    """How tokens go in a model.

    Raises:
        ValueError: the schedule does not fit the model, or leaves a layer without patches.
    """
    place, fusion = options.place, options.last_layer_fusion
    if options.pruner is not None:
        plan = TokenPlan(options.pruner, options.schedule, place, fusion)
        PrunedModel(Network(module, ()), plan).counts(module)
        return plan
    assert options.learned is not None
    from vit.tokens.token_norm import TokenNorm  # any pruner counts: weights depend on the counts

    patches = count_patches(module)
    counts = PrunedModel(Network(module, ()), TokenPlan(TokenNorm(), options.schedule, place, fusion)).counts(module)
    config: Any = module.config
    pruner = options.learned.build(stream_width(module), int(config.num_labels), drops_at(counts, patches))
    if isinstance(pruner, nn.Module):
        pruner.to(next(module.parameters()).device)
    return TokenPlan(pruner, Counts(counts), place, fusion)


def stream_width(module: nn.Module) -> int:
    """Features of a token."""
    from vit.units.layouts import layers

    return layers(module)[0].width


def is_pruned(source: Source) -> bool:
    """Whether something was cut from the model before."""
    return source.manifest is not None
