"""The scratch control: is what pruning kept worth more than the architecture that it found?

Liu et al. 2019, Rethinking the Value of Network Pruning (arXiv 1810.05270), train the pruned architecture from new
random weights, for as long as the dense network was trained (Scratch-E) or for as much computation (Scratch-B), and
compare with the pruned network, fine-tuned.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.recovery.zeros import zeros_of
from secateur.training.seeding import seeded
from secateur.training.weights import evaluating

Train = Callable[[nn.Module, int, int], Any]
"""(module, steps, seed): trains the module in place; `secateur.recovery.zeros.HoldZeros` holds the zeros of a sparse
one."""

Evaluate = Callable[[nn.Module], float]
"""How good a module is: the higher, the better."""


@dataclass(frozen=True)
class Arm:
    """One way to train the architecture, over seeds.

    Args:
        steps: of each training.
        scores: one a seed, in the order of `ScratchControl.seeds`.
    """

    steps: int
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.scores)

    @property
    def std(self) -> float:
        """Standard deviation of the scores over seeds (n - 1 in the denominator); 0 for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True)
class ScratchControl:
    """A pruned network beside its own architecture trained from new weights; `report.record.to_json` writes it.

    Args:
        seeds: of each arm.
        inherited: fine-tuned from the weights that pruning kept.
        scratch_e: from new weights, for the steps that the dense network was trained.
        scratch_b: from new weights, for the computation that the dense network was trained (capped).
    """

    seeds: tuple[int, ...]
    inherited: Arm
    scratch_e: Arm
    scratch_b: Arm

    @property
    def gain(self) -> float:
        """Mean score that the inherited weights add to the better of the two controls."""
        return self.inherited.mean - max(self.scratch_e.mean, self.scratch_b.mean)


def scratch_control(
    pruned: nn.Module,
    train: Train,
    evaluate: Evaluate,
    *,
    steps: int,
    fine_tune_steps: int,
    dense_cost: float,
    pruned_cost: float,
    seeds: Iterable[int],
    fresh: Callable[[nn.Module, int], nn.Module] | None = None,
    cap: float = 2.0,
) -> ScratchControl:
    """Fine-tune a pruned network, train its architecture from scratch for two budgets, and compare.

    The control of Liu et al. 2019 (arXiv 1810.05270): their Scratch-E and Scratch-B.

    Args:
        pruned: the network as pruning left it; is not changed.
        train: the same for all three; what it draws globally comes from the seed.
        evaluate: is called on trained modules, in evaluation mode, without gradients.
        steps: for which the dense network was trained.
        fine_tune_steps: for which the pruned one is fine-tuned.
        dense_cost, pruned_cost: of a step or a forward of each, in one unit (`secateur.surgery.cost` counts MACs).
        seeds: one of each training, and of the new weights.
        fresh: (pruned network, seed) -> the same architecture with new weights; None: `reinitialised`.
        cap: see `scratch_b_steps`.

    Raises:
        ValueError: there are no seeds, or an argument is out of range.
    """
    order = tuple(seeds)
    if not order:
        raise ValueError("there are no seeds: at least one is needed")
    if steps < 1 or fine_tune_steps < 0:
        raise ValueError(f"steps >= 1 and fine_tune_steps >= 0 are needed, got {steps} and {fine_tune_steps}")
    longer = scratch_b_steps(steps, dense_cost, pruned_cost, cap)

    def arm(start: Callable[[nn.Module, int], nn.Module], length: int) -> Arm:
        return Arm(length, tuple(_trained(start(pruned, seed), train, evaluate, length, seed) for seed in order))

    new = fresh or reinitialised
    return ScratchControl(
        order, arm(lambda module, seed: copy.deepcopy(module), fine_tune_steps), arm(new, steps), arm(new, longer)
    )


def scratch_b_steps(steps: int, dense_cost: float, pruned_cost: float, cap: float = 2.0) -> int:
    """steps * min(dense_cost / pruned_cost, cap), rounded: as much computation as the dense network's training took.

    Args:
        steps: of the dense network.
        dense_cost, pruned_cost: of one step each, in one unit.
        cap: the longest training, in dense ones; the paper doubles it at most.

    Raises:
        ValueError: a cost is not above 0 and finite, the pruned one is above the dense one, or the cap is below 1.
    """
    if not 0 < pruned_cost <= dense_cost < math.inf or not cap >= 1:
        raise ValueError(
            f"0 < pruned_cost <= dense_cost and cap >= 1 are needed, got {pruned_cost}, {dense_cost} and {cap}"
        )
    return round(steps * min(dense_cost / pruned_cost, cap))


def reinitialised(module: nn.Module, seed: int) -> nn.Module:
    """A copy with the weights that each layer's `reset_parameters` draws, and 0 where a matrix is 0.

    Shapes, buffers' shapes and masks (the zeros of parameters of two dimensions or more) are the module's.

    Args:
        module: is not changed.
        seed: of the weights; the global random state is left alone.

    Raises:
        ValueError: a part holds parameters of its own and cannot reset them; pass `fresh` to `scratch_control`.
    """
    new = copy.deepcopy(module)
    zeros = zeros_of(module)
    parameters = dict(new.named_parameters())
    first = next(iter(parameters.values()), None)
    with seeded(seed, torch.device("cpu") if first is None else first.device), torch.no_grad():
        for name, part in new.named_modules():
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is not None:
                reset()
            elif next(part.parameters(recurse=False), None) is not None:
                raise ValueError(
                    f"{name or 'the module'!r} ({type(part).__name__}) has parameters and no reset_parameters()"
                )
        for name, zero in zeros.items():
            parameters[name].masked_fill_(zero, 0)
    return new


def _trained(module: nn.Module, train: Train, evaluate: Evaluate, steps: int, seed: int) -> float:
    first = next(module.parameters(), None)
    with seeded(seed, torch.device("cpu") if first is None else first.device):
        if steps:
            train(module, steps, seed)
        with evaluating(module):
            return float(evaluate(module))
