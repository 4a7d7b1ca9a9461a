"""LPViT: which blocks of a vision transformer's linear layers stay, by what they are worth and what they cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from secateur.allocation import Budget
from secateur.block_compaction import expand_blocks, write_block_zeros
from secateur.block_curves import removal_curve
from secateur.block_sparse import DENSE_FROM, with_blocks
from secateur.blocks import BlockTaylor
from secateur.distortion import Curve, RateDistortion
from secateur.granularity import Block, Weights
from secateur.importance.objective import Objective
from secateur.maths import topk_mask
from secateur.recovery.refit import ObsRefit
from secateur.solvers.gram import Gram
from secateur.units import Criterion, Scores, UnitGroup
from vit.lpvit.calibrate import gather_inputs, output_sensitivities
from vit.lpvit.costs import BlockLayer, BlockTime, input_width

HEADS = ("classifier*", "*_classifier", "head*", "*.head")
"""Names of last layers, which are left alone."""


@dataclass(frozen=True)
class LayerRecord:
    """What became of a layer.

    Args:
        layer: its sizes.
        kept: blocks that stay.
        loss: its distortion, as the curve has it: before the refit.
        power: of all its blocks.
        power_kept: of those that stay.
    """

    layer: BlockLayer
    kept: int
    loss: float
    power: float
    power_kept: float


@dataclass(frozen=True, eq=False)
class Pruned:
    """A block-sparse model.

    Args:
        module: with `BlockSparseLinear` layers, where these are faster.
        masked: the same model dense, with zeros: for fine-tuning, or for `secateur.block_compaction.compact`.
        keep: layer -> which of its blocks stay.
        layers: what became of each.
        left_out: linear layers that were matched by a pattern, and have no whole blocks of that size.
    """

    module: nn.Module
    masked: nn.Module
    keep: dict[str, Bool[Tensor, "high wide"]]
    layers: tuple[LayerRecord, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class LPViT:
    """Block sparsity after training: least distortion of the layers' outputs, plus lambda times power, in a budget.

    Xu et al.: LPViT: Low-Power Semi-structured Pruning for Vision Transformers (arXiv 2407.02068). In each layer blocks
    go in the order of their scores; how much it loses by each of 101 counts is the second-order term 0.5 tr D H D^T of
    what is gone, H the mean of x x^T, to which power adds a term that is linear in the kept blocks. Equal slopes over
    all layers (a Lagrange multiplier) meet the budget, exactly. Then the kept weights may be solved again.

    Unlike the released code: gradients, where a score or `objective` takes them, are of the task's loss and not of
    mean(output^2); power counts blocks that are kept and not those that went; the quadratic is the exact one of the
    layer, over all blocks at once, from d_in^2 numbers, and not a Fisher matrix of weights in chunks; nothing is cached
    by path; slopes are those of the curve, without a stencil or smoothing.

    Args:
        rows: height of a block; 16 x 16 to 64 x 32 in the paper.
        columns: width of a block.
        score: of the blocks over `Weights(model, Block(rows, columns))`: `Taylor("elements")` is the paper's block
            average of |w g|; None is the second-order term of each block alone (`secateur.blocks.BlockTaylor`).
        power_weight: lambda, relative to the ratio of the layers' mean largest slopes of distortion and of power, which
            is the paper's balance. 0 minds the distortion only. With a budget it moves blocks to layers whose blocks
            need less power for their cost; without one it decides how many stay, and 0 keeps all.
        power: of a kept block of a layer.
        min_sparsity: share of its blocks that each layer loses at least (0.05 to 0.2 in the released code).
        min_keep: the fewest blocks of a layer.
        steps: levels of each curve.
        refit: solve the kept weights of each layer again by least squares; None leaves them.
        layers: patterns of names (`fnmatch`) of linear layers.
        skip: patterns of those that are left alone.
        dense_from: share of kept blocks from which a layer stays dense (see `secateur.block_sparse.with_blocks`).
        times: layer -> measured time of its blocks, for budgets in "ms" (see `measure_block_time`).
    """

    rows: int = 32
    columns: int = 32
    score: Criterion | None = None
    power_weight: float = 0.0
    power: Callable[[BlockLayer], float] = input_width
    min_sparsity: float = 0.0
    min_keep: int = 1
    steps: int = 100
    refit: ObsRefit | None = None
    layers: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = HEADS
    dense_from: float = DENSE_FROM
    times: Callable[[BlockLayer], BlockTime] | None = field(default=None)

    def __post_init__(self) -> None:
        if not (self.power_weight >= 0 and 0 <= self.min_sparsity < 1 and self.min_keep >= 0 and self.steps >= 1):
            raise ValueError(
                "power_weight >= 0, min_sparsity in [0, 1), min_keep >= 0 and steps >= 1 are needed, got "
                f"{self.power_weight}, {self.min_sparsity}, {self.min_keep} and {self.steps}"
            )

    def prune(
        self, model: nn.Module, batches: Sequence[Any], budget: Budget | None, objective: Objective | None = None
    ) -> Pruned:
        """The block-sparse model; `model` is left as it is.

        Args:
            model: any network with linear layers: ViT, DeiT, Swin of transformers.
            batches: calibration, each a tensor, a tuple of arguments, or a dict of them.
            budget: of "units" (blocks), "params", "macs" (of a batch), "power", or "ms" with `times`: what all layers'
                blocks may cost together. None: as many as `power_weight` leaves.
            objective: a loss, whose losses call the model; for `score`, and to weigh distortions by how much the loss
                minds each output, which is much better where there is one. None: errors relative to a layer's output.

        Raises:
            ValueError: no layer fits the patterns, a layer is not run, or the budget does not hold the floors.
        """
        chosen, left_out = self.find_layers(model)
        grams = gather_inputs(model, chosen, batches)
        weights = {name: layer.weight.detach() for name, layer in chosen.items()}
        if objective is None:
            weights = {name: weight / _output_size(weight, grams[name]) for name, weight in weights.items()}
        else:
            minds = output_sensitivities(model, chosen, objective)
            weights = {name: minds[name].sqrt().to(weight)[:, None] * weight for name, weight in weights.items()}
        sizes = {name: self._sizes(name, layer, grams[name], len(batches)) for name, layer in chosen.items()}
        scores = self._scores(model, weights, grams, objective)
        curves = {
            name: removal_curve(weights[name], grams[name], self._grid(scores[name], sizes[name]), self.steps)
            for name in chosen
        }
        counts = self.counts(sizes, scores, curves, budget)
        keep = {name: self._grid(topk_mask(scores[name], counts[name]), size).cpu() for name, size in sizes.items()}
        masked = self._masked(model, keep, grams)
        records = tuple(self._record(size, counts[name], curves[name]) for name, size in sizes.items())
        return Pruned(with_blocks(masked, keep, self.dense_from), masked, keep, records, left_out)

    def find_layers(self, model: nn.Module) -> tuple[dict[str, nn.Linear], tuple[str, ...]]:
        """The linear layers by name, and the names of those that have no whole blocks.

        Raises:
            ValueError: there is none, or a pattern without a wildcard names one that does not fit.
        """
        found = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
            and any(fnmatchcase(name, pattern) for pattern in self.layers)
            and not any(fnmatchcase(name, pattern) for pattern in self.skip)
        }
        uneven = [n for n, each in found.items() if each.out_features % self.rows or each.in_features % self.columns]
        if len(uneven) == len(found) or any(name in self.layers for name in uneven):
            raise ValueError(
                f"no linear layer that {self.layers} names has whole blocks of {self.rows} x {self.columns}; there are "
                f"{[f'{name}: {each.out_features} x {each.in_features}' for name, each in found.items()] or 'none'}"
            )
        return {name: each for name, each in found.items() if name not in uneven}, tuple(uneven)

    def counts(
        self, sizes: Mapping[str, BlockLayer], scores: Scores, curves: Mapping[str, Curve], budget: Budget | None
    ) -> dict[str, int]:
        """How many blocks each layer keeps.

        Args:
            sizes: the layers.
            scores: layer -> (blocks,).
            curves: layer -> distortion by count.
            budget: see `prune`.
        """
        prices = self._power_prices(sizes, curves)
        most = {name: int(size.blocks * (1 - self.min_sparsity) + 1e-9) for name, size in sizes.items()}
        if budget is None:
            return {name: _least(curves[name], price, self.min_keep, most[name]) for name, price in prices.items()}
        amount = budget.amount([self._group(size, size.blocks) for size in sizes.values()])
        groups = [self._group(size, most[name]) for name, size in sizes.items()]
        each = {group.name: _of_one(group, budget.cost) for group in groups}
        # The budget is spent whatever is kept, so what a unit of cost is credited with changes no choice: with enough
        # of it, losses fall with every block in spite of the power.
        credit = max((prices[name] / cost for name, cost in each.items() if cost), default=0.0)
        shifted = {name: _shifted(curves[name], prices[name] - credit * each[name], most[name]) for name in curves}
        best = {name: scores[name].sort(descending=True, stable=True).values[: most[name]] for name in sizes}
        keep = RateDistortion(shifted, "multiplier")(best, groups, Budget(limit=amount, cost=budget.cost))
        return {name: int(mask.sum()) for name, mask in keep.items()}

    def _power_prices(self, sizes: Mapping[str, BlockLayer], curves: Mapping[str, Curve]) -> dict[str, float]:
        """lambda times the power of a block, in the curves' unit."""
        power = {name: float(self.power(size)) for name, size in sizes.items()}
        steepest = [
            float((-curve.losses.diff() / curve.counts.diff()).max()) if len(curve.counts) > 1 else 0.0
            for curve in curves.values()
        ]
        balance = float(np.mean(steepest)) / max(float(np.mean(list(power.values()))), 1e-300)
        return {name: self.power_weight * balance * each for name, each in power.items()}

    def _sizes(self, name: str, layer: nn.Linear, gram: Gram, batches: int) -> BlockLayer:
        tokens = gram.samples / batches
        return BlockLayer(name, layer.out_features, layer.in_features, self.rows, self.columns, tokens)

    def _group(self, size: BlockLayer, most: int) -> UnitGroup:
        each = {"params": size.rows * size.columns, "macs": size.macs, "power": self.power(size)}
        if self.times is not None:
            each["ms"] = self.times(size).per_block_ms
        costs = {cost: torch.full((most,), float(value), dtype=torch.float64) for cost, value in each.items()}
        return UnitGroup(size.name, most, (), costs, min(self.min_keep, most))

    def _scores(
        self, model: nn.Module, weights: Mapping[str, Tensor], grams: Mapping[str, Gram], objective: Objective | None
    ) -> Scores:
        if self.score is None:
            second = BlockTaylor(self.rows, self.columns)
            return {name: second.score(weight, grams[name]).flatten() for name, weight in weights.items()}
        names = {f"{name}.weight" if name else "weight": name for name in weights}
        target = Weights(model, Block(self.rows, self.columns), lambda name, _: name in names)
        return {names[name]: score for name, score in self.score.score(target, objective).items()}

    def _grid(self, flat: Float[Tensor, " blocks"], size: BlockLayer) -> Float[Tensor, "high wide"]:
        return flat.view(size.out_features // size.rows, size.in_features // size.columns)

    @torch.no_grad()
    def _masked(self, model: nn.Module, keep: Mapping[str, Tensor], grams: Mapping[str, Gram]) -> nn.Module:
        masked = copy.deepcopy(model)
        write_block_zeros(masked, keep)
        if self.refit is None:
            return masked
        for name, kept in keep.items():
            dense: Any = model.get_submodule(name).weight
            small: Any = masked.get_submodule(name).weight
            mask = expand_blocks(kept.to(dense.device), dense.shape)
            small.copy_(self.refit.masked(dense, grams[name], mask))
        return masked

    def _record(self, size: BlockLayer, kept: int, curve: Curve) -> LayerRecord:
        power = self.power(size)
        loss = float(np.interp(kept, curve.counts.numpy(), curve.losses.numpy()))
        return LayerRecord(size, kept, loss, power * size.blocks, power * kept)


def _output_size(weight: Tensor, gram: Gram) -> float:
    """Root mean square of the layer's output without its bias, summed over outputs; 1 where all of it is 0."""
    energy = float(((weight.to(gram.mean) @ gram.mean) * weight.to(gram.mean)).sum())
    return energy**0.5 if energy > 0 else 1.0


def _of_one(group: UnitGroup, cost: str) -> float:
    """The cost of a unit, which all of a group share; raises ValueError where groups have no such cost."""
    if cost == "units":
        return 1.0
    if cost not in group.cost:
        raise ValueError(f"blocks have no cost {cost!r}; they have {sorted(group.cost)}, and 'ms' with times")
    return float(group.cost[cost][0])


def _least(curve: Curve, price: float, fewest: int, most: int) -> int:
    """The count of least loss and power; of equal ones the largest."""
    inside = (curve.counts >= fewest) & (curve.counts <= most)
    counts = curve.counts[inside].numpy()
    if not len(counts):
        return max(fewest, most)
    totals = curve.losses[inside].double().numpy() + price * counts
    return int(counts[len(counts) - 1 - int(np.argmin(totals[::-1]))])


def _shifted(curve: Curve, price: float, most: int) -> Curve:
    """The curve plus a price a block, up to the most blocks that may stay."""
    inside = curve.counts < most
    counts = torch.cat([curve.counts[inside], torch.tensor([most])])
    losses = torch.from_numpy(np.interp(counts.numpy(), curve.counts.numpy(), curve.losses.double().numpy()))
    return Curve(counts, losses + price * counts)
