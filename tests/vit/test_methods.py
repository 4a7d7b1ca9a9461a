"""The core's criteria and allocators on vision transformers: every family, every kind of unit, and a trained model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

from secateur.allocation import Allocator, Budget, allocate, allocate_knapsack, allocate_per_group
from secateur.distortion import RateDistortion, measure_curves
from secateur.granularity import Block
from secateur.greedy import Stage, prune_greedily
from secateur.importance import (
    Fisher,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    Magnitude,
    MaskHessian,
    MaskTaylor,
    Random,
    Supervised,
    Taylor,
)
from secateur.importance.movement import Movement
from secateur.masked_training import MovementPruning
from secateur.schedules import Linear
from secateur.surgery import Network
from secateur.surgery.cost import count_macs
from secateur.surgery.dead import cut_dead
from secateur.surgery.layers import named_tensors
from secateur.surgery.network import rows_of
from secateur.training import fit
from secateur.units import Criterion, Scores
from tests.contracts import (
    assert_allocator_keeps_its_contracts,
    assert_deterministic,
    assert_mask_equals_cut,
    assert_permutes,
    assert_same,
    assert_scores_fit,
)
from tests.vit.digits import accuracy, pictures, trained
from tests.vit.models import first_output, inputs, random_model, run
from vit.inputs import example_inputs
from vit.tasks.task import logits_of
from vit.units import Kind, prunable

FAMILIES = ("vit", "deit", "dinov2", "swin", "sam")
KINDS: tuple[Kind, ...] = ("heads", "neurons", "embedding", "attentions", "blocks")

ELEMENTS: tuple[Criterion, ...] = (
    Magnitude(),
    Taylor(),
    Taylor("square"),
    Taylor("elements"),
    Taylor("signed", second=HessianProduct()),
    Fisher(),
    HessianProduct(),
    MaskTaylor(),
)
PROBED: tuple[Criterion, ...] = (
    HessianDiagonal(samples=1),
    HessianTrace(HessianDiagonal(samples=1)),
    MaskHessian(samples=1),
)
CRITERIA = (*ELEMENTS, *PROBED)


@dataclass(frozen=True)
class Watched:
    """Movement over two steps of training."""

    def score(self, target: Network, calibration: Supervised) -> Scores:
        movement = Movement(units=target)
        fit(Descent(target.module, calibration), Numbers(), steps=2, callbacks=[movement])
        return movement.score(target)


class Numbers:
    """The number of the step."""

    def batch_at(self, step: int, /) -> int:
        return step


class Descent(lightning.LightningModule):
    """Lowers the losses of an objective, one a step."""

    def __init__(self, network: nn.Module, objective: Supervised) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def training_step(self, batch: int, step: int) -> Tensor:
        return list(self.objective.losses(self.network))[step % 2]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def square(output: Any, _wanted: None) -> Tensor:
    return first_output(output).square().mean()


def objective(family: str) -> Supervised:
    """Two images, one a batch; without labels, which SAM has none of."""
    pixels = inputs(family)["pixel_values"]
    return Supervised([(image[None], None) for image in pixels], square)


@cache
def network(family: str, kinds: tuple[Kind, ...] = KINDS, double: bool = False) -> Network:
    model = random_model(family)
    return prunable(model.double() if double else model, kinds, None if double else inputs(family))


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_criterion_scores_every_kind_of_unit(family: str, criterion: Criterion) -> None:
    target = network(family)
    before = {name: value.clone() for name, value in target.module.state_dict().items()}
    scores = criterion.score(target, objective(family))
    assert_scores_fit(scores, target.groups())
    assert all(bool((score != 0).any()) for score in scores.values())
    assert all(len(score.unique()) > 1 for score in scores.values() if len(score) > 1)
    assert_same(before, dict(target.module.state_dict()))
    assert not any(tensor.grad is not None for tensor in target.module.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_movement_scores_every_kind_of_unit(family: str) -> None:
    target = prunable(copy.deepcopy(network(family).module), KINDS)
    scores = Watched().score(target, objective(family))
    assert_scores_fit(scores, target.groups())
    assert all(bool((score != 0).all()) for score in scores.values())


def test_block_movement_with_blocks_of_a_heads_size_prunes_heads() -> None:
    model = copy.deepcopy(network("vit").module)
    pruning = MovementPruning(
        Linear(),
        Budget(share=0.5),
        last_step=4,
        granularity=Block(24, 6),
        params=lambda name, _: name.endswith("o_proj.weight"),
    )
    fit(Descent(model, objective("vit")), Numbers(), steps=6, callbacks=[pruning])
    left = [int(mask.sum()) for mask in pruning.keep.values()]
    assert sum(left) == 6 and len(left) == 3
    smaller = cut_dead(prunable(model, ("heads",)))
    assert [group.size for group in smaller.groups()] == left, "a head goes once the block that reads it is gone"
    torch.testing.assert_close(run("vit")(smaller), run("vit")(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("criterion", CRITERIA, ids=repr)
def test_scores_are_the_same_again(criterion: Criterion) -> None:
    assert_deterministic(lambda: criterion.score(network("vit"), objective("vit")))


@pytest.mark.parametrize("criterion", [*ELEMENTS, Watched()], ids=repr)
@pytest.mark.parametrize("group", ["vit.layers.1.attention.heads", "vit.layers.1.mlp.neurons", "vit.embedding"])
def test_scores_follow_units_that_change_places(criterion: Criterion, group: str) -> None:
    def score(target: Network) -> Scores:
        return criterion.score(prunable(copy.deepcopy(target.module), KINDS), objective_in_double())

    assert_permutes(
        score, network("vit", double=True), lambda target, order: permuted(target, group, order), group, 1e-6
    )


def objective_in_double() -> Supervised:
    return Supervised([(image[None].double(), None) for image in inputs("vit")["pixel_values"]], square)


def permuted(target: Network, name: str, order: Tensor) -> Network:
    """The network whose unit i of a group is the old unit order[i]; it computes the same."""
    module = copy.deepcopy(target.module)
    tensors = named_tensors(module)
    group = next(group for group in target.groups() if group.name == name)
    for member in group.members:
        rows = rows_of(member, group.size)
        tensor = tensors[member.param].detach().movedim(member.dim, 0)
        tensor[rows.flatten()] = tensor[rows[order].flatten()]
    return prunable(module, KINDS)


def test_a_network_with_permuted_units_computes_the_same() -> None:
    target = network("vit", double=True)
    pixels = inputs("vit")["pixel_values"].double()
    for group in target.groups():
        if group.size > 1:
            order = torch.arange(group.size).flip(0)
            torch.testing.assert_close(permuted(target, group.name, order)(pixels).logits, target(pixels).logits)


@pytest.mark.parametrize("family", ["vit", "swin", "sam"])
def test_second_order_scores_are_those_of_the_masks_own_curvature(family: str) -> None:
    """Where a unit's mask multiplies weights alone, the sum of its elements' w (H w) is 1^T (d^2 loss / d mask^2)."""
    target = network(family, ("neurons",), double=True)
    pixels = inputs(family)["pixel_values"].double()
    readers = tuple(group.members[-1].param for group in target.groups())
    product = HessianProduct(params=readers).score(target, Supervised([(pixels, None)], square))
    masks = {group.name: torch.ones(group.size, dtype=torch.float64) for group in target.groups()}

    def loss(scale: Tensor) -> Tensor:
        with target.masked({name: mask * scale for name, mask in masks.items()}):
            return square(target(pixels), None)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        curvature = torch.autograd.functional.hessian(loss, torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(2 * sum(score.sum() for score in product.values()), curvature, rtol=1e-6, atol=1e-12)


@cache
def scored(family: str) -> tuple[Network, Scores]:
    target = network(family, ("heads", "neurons"))
    return target, Taylor("square").score(target, objective(family))


def allocators(family: str) -> Sequence[Allocator]:
    target, scores = scored(family)
    curves = measure_curves(target, run(family), scores, steps=3)
    return (allocate, allocate_per_group, allocate_knapsack, RateDistortion(curves))


@pytest.mark.parametrize("family", FAMILIES)
def test_allocators_keep_their_contracts(family: str) -> None:
    target, scores = scored(family)
    for allocator in allocators(family):
        budgets = [Budget(share=0.6), Budget(share=0.5, cost="macs")]
        assert_allocator_keeps_its_contracts(allocator, scores, target.groups(), budgets)
        keep = allocator(scores, target.groups(), budgets[1])
        largest = float(run(family)(target).abs().max())
        assert_mask_equals_cut(target, keep, run(family), atol=1e-5 * max(1.0, largest))


SEEDS = (0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow))
"""Of the trained models."""

LEARNED: tuple[Criterion, ...] = (
    Taylor(),
    Taylor("square"),
    Taylor("abs", second=HessianProduct()),
    Fisher(),
    HessianTrace(HessianDiagonal(samples=8, absolute=True)),
    MaskTaylor("square"),
    MaskHessian(samples=8),
)


@cache
def reader(seed: int) -> Network:
    model = trained(seed)
    return prunable(model, ("heads", "neurons"), example_inputs(model))


@cache
def labelled() -> Supervised:
    """128 pictures that the model was trained on, in batches of 8."""
    data = pictures()[0].subset(slice(128))
    batches = [(batch["pixel_values"], batch["labels"]) for batch in data.in_order(8)]
    return Supervised(batches, lambda output, labels: nn.functional.cross_entropy(logits_of(output), labels))


def remaining(target: Network, scores: Scores, allocator: Allocator, share: float) -> float:
    """Accuracy of what is left, without any training, of a share of the units' multiply-adds."""
    return accuracy(target.cut(allocator(scores, target.groups(), Budget(share=share, cost="macs"))).module)


@cache
def at_random(seed: int, allocator: Allocator, share: float) -> float:
    """Mean accuracy over three random choices by the same allocator."""
    target = reader(seed)
    return sum(remaining(target, Random(draw).score(target), allocator, share) for draw in range(3)) / 3


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("criterion", LEARNED, ids=repr)
def test_what_the_loss_tells_is_worth_more_than_chance(criterion: Criterion, seed: int) -> None:
    target = reader(seed)
    scores = criterion.score(target, labelled())
    for share, margin in ((0.7, 0.04), (0.5, 0.2)):
        assert remaining(target, scores, allocate_knapsack, share) > at_random(seed, allocate_knapsack, share) + margin


@pytest.mark.parametrize("seed", SEEDS)
def test_measured_distortion_splits_the_budget_better_than_chance(seed: int) -> None:
    target = reader(seed)
    pixels = pictures()[0].subset(slice(128)).pixel_values()
    scores = Magnitude(2.0).score(target)
    curves = measure_curves(target, lambda network: logits_of(network(pixels)), scores, steps=8)
    for share, margin in ((0.7, 0.1), (0.5, 0.2)):
        left = remaining(target, scores, RateDistortion(curves), share)
        assert left > at_random(seed, allocate_per_group, share) + margin
        assert left > remaining(target, scores, allocate_per_group, share) + margin / 10


@pytest.mark.parametrize("seed", SEEDS)
def test_depth_and_then_width_without_training_beat_chance(seed: int) -> None:
    """MultiPruner's stages in its shares: attentions and feed-forwards, neurons by eights, heads."""
    model, data = trained(seed), pictures()[0].subset(slice(128))
    target = prunable(model, ("heads", "neurons", "attentions", "feed_forwards"), example_inputs(model))
    whole = sum(float(group.cost["macs"].sum()) for group in reader(seed).groups())
    pixels = data.pixel_values()

    def loss(network: Network) -> float:
        return float(nn.functional.cross_entropy(logits_of(network(pixels)), data.labels))

    for share, margin in ((0.7, 0.05), (0.5, 0.15)):
        gone = (1 - share) * whole
        stages = [
            Stage(lambda group: group.name.endswith((".attention", ".mlp")), 0.44 * gone, "macs"),
            Stage(lambda group: group.name.endswith(".neurons"), 0.96 * gone, "macs", chunk=8),
            Stage(lambda group: group.name.endswith(".heads"), gone, "macs"),
        ]
        small, steps = prune_greedily(target, stages, loss)
        assert [step.stage for step in steps] == sorted(step.stage for step in steps)
        assert count_macs(small.module, example_inputs(model)) < (0.03 + share) * count_macs(
            model, example_inputs(model)
        )
        assert accuracy(small.module) > at_random(seed, allocate_per_group, share) + margin
