"""Training in which removed weights may come back: the loss sees masked weights, and the values behind the mask are
kept.

Callbacks of any Lightning trainer, which differ in what the mask of a step is: `StochasticAnnealing` draws it,
`MovementPruning` takes the best by movement, `SoftMovementPruning` all that are above a threshold. In the end the last
mask's zeros are written. Between steps, and in checkpoints, weights are dense: a validation in the midst of training
sees all of them.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from secateur.allocation import Budget
from secateur.granularity import Granularity, ParamsFilter, matrices, spread
from secateur.importance.movement import Movement
from secateur.maths import topk_mask
from secateur.pruning_callback import DenseBetweenSteps
from secateur.schedules import Schedule, budget_at
from secateur.training.seeding import generator_at
from secateur.units import Keep


class MaskedTraining(DenseBetweenSteps):
    """In each step the module computes with the weights of `draw()` alone, and only they are updated.

    Args: as for `SparseCallback`.
    """

    @abstractmethod
    def draw(self) -> Keep:
        """Group name -> (size,) bool: which weights act in the present step."""

    def last_mask(self) -> Keep:
        """Group name -> (size,) bool: which weights are left in the end; the mask of the step after the last."""
        return self.draw()

    def values(self) -> dict[str, Tensor]:
        """The weights by name as they were at the start of the step, without a mask, in their own shapes."""
        assert self._dense is not None
        return {name: self._dense[name].view(weight.shape) for name, weight in self.target.weights().items()}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._handles += [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.keep = self.draw()
        self.remember()
        self.target.write_zeros(self.keep)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        self.mask_gradients()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._dense is not None:
            self.target.write_zeros(self.keep)

    def put_back(self, dense: dict[str, Tensor]) -> None:
        tensors = self.target.tensors()
        for group in self.target.groups():
            view = tensors[group.name]
            acts = spread(self.keep[group.name], group.members[0], view)
            view.copy_(torch.where(acts, view, dense[group.name]))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.keep = self.last_mask()
        self.target.write_zeros(self.keep)


class StochasticAnnealing(MaskedTraining):
    """Fine-tunes with masks from which removed weights fade out at random, instead of at once.

    Stochastic subnetwork annealing (Whitaker and Whitley 2024, arXiv 2401.08830): in each step a removed weight acts
    with probability p_t, which falls from `start` to 0 at `last_step`; what stays always acts. Weights that do not act
    in a step are neither seen nor updated in it. From `last_step` on the mask is the given one, and with `start=0`
    this is an ordinary masked fine-tune (`PruningCallback.fixed`), bit for bit.

    Args:
        keep: group name -> (size,) bool: what stays.
        last_step: when the removed weights are gone; a step is a batch.
        start: p_0, 0 to 1; 0.5 is a choice of ours.
        fade: how p falls, as a schedule; None: linear. The paper has linear and cosine.
        seed: of the masks; the draws of a step depend on nothing else.
        granularity: what a unit is; None: single weights.
        params: which parameters have masks.

    Raises:
        ValueError: `start` is no probability, or `last_step` is negative.
    """

    def __init__(
        self,
        keep: Keep,
        last_step: int,
        start: float = 0.5,
        fade: Schedule | None = None,
        seed: int = 0,
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
    ) -> None:
        super().__init__(granularity, params, min_keep=0)
        if not 0 <= start <= 1 or last_step < 0:
            raise ValueError(f"start in [0, 1] and last_step >= 0 are needed, got {start} and {last_step}")
        self.final, self.last_step, self.start, self.fade, self.seed = dict(keep), last_step, start, fade, seed
        self.keep = dict(keep)

    def probability(self) -> float:
        """p_t of the present step."""
        if self.step >= self.last_step:
            return 0.0
        progress = self.step / self.last_step
        return self.start * (1 - (progress if self.fade is None else self.fade(progress)))

    def draw(self) -> Keep:
        generator, chance = generator_at(self.seed, self.step), self.probability()
        if not chance:
            return dict(self.final)
        return {
            name: mask | (torch.rand(mask.shape, generator=generator) < chance).to(mask.device)
            for name, mask in self.final.items()
        }

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.final = {name: mask.to(pl_module.device) for name, mask in self.final.items()}


class ByMovement(MaskedTraining):
    """Masks that follow scores of movement, which go on for removed weights too, so that these can return.

    In the forward pass W' = W * M; by the straight-through estimator dL/dS = dL/dW' * W for every weight, while weights
    that are masked out rest (Sanh et al. 2020, arXiv 2005.07683, section 4).

    Args:
        granularity: what a unit is; None: single weights.
        params: which parameters are pruned.
        min_keep: the fewest units that stay in each parameter.
        rate: learning rate of the scores.
        penalty: of the sum of sigma(S) (see `Movement`).
    """

    def __init__(
        self, granularity: Granularity | None, params: ParamsFilter, min_keep: int, rate: float, penalty: float
    ) -> None:
        super().__init__(granularity, params, min_keep)
        self.movement = Movement(self.granularity, params, rate, penalty)

    @property
    def state_key(self) -> str:
        """Of its part of a checkpoint: a training may have one for each kind of units."""
        return f"{type(self).__qualname__} of {self.granularity!r}"

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        weights = self.target.weights().items()
        gradients = {name: w.grad for name, w in weights if id(w) in stepped and w.grad is not None}
        self.movement.accumulate(self.target, gradients, self.values())
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self.movement.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.movement.load_state_dict(state_dict)


class MovementPruning(ByMovement):
    """Trains under the mask of the best weights by movement; scores of removed ones go on, so that they can return.

    Movement pruning (Sanh et al. 2020, arXiv 2005.07683, section 4): W' = W * top_v(S) in the forward pass. The share
    v follows a schedule, cubic in the paper, from `first_step` to `last_step`; then masks still follow the scores.
    With `Block` it is block movement pruning (Lagunas et al. 2021, arXiv 2109.04838).

    Args:
        schedule: how much is gone at which progress.
        budget: what stays in the end.
        first_step: when pruning begins; before it, only the scores move. A step is a batch.
        last_step: when the budget is reached.
        granularity: what a unit is; None: single weights.
        params: which parameters are pruned.
        min_keep: the fewest units that stay in each parameter.
        rate: learning rate of the scores.
        penalty: of the sum of sigma(S) (see `Movement`).

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        last_step: int,
        first_step: int = 0,
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
        rate: float = 1.0,
        penalty: float = 0.0,
    ) -> None:
        super().__init__(granularity, params, min_keep, rate, penalty)
        if not 0 <= first_step <= last_step:
            raise ValueError(f"0 <= first_step <= last_step is needed, got {first_step} and {last_step}")
        self.schedule, self.budget = schedule, budget
        self.first_step, self.last_step = first_step, last_step

    def draw(self) -> Keep:
        progress = 1.0
        if self.step < self.last_step:
            progress = max(0, self.step - self.first_step) / (self.last_step - self.first_step)
        groups = self.target.groups()
        budget = budget_at(self.schedule, progress, self.budget, groups)
        return self.granularity.allocate(self.movement.score(self.target), groups, budget)


class SoftMovementPruning(ByMovement):
    """Trains under the mask sigma(S) > threshold, with a penalty on the sum of sigma(S): soft movement pruning.

    Sanh et al. 2020 (arXiv 2005.07683, section 4.2); with `Block` it is block movement pruning (Lagunas et al. 2021,
    arXiv 2109.04838). How much stays is learnt, layer by layer, and follows from the penalty; with a budget, the mask
    in which training ends is hardened to it: the best by movement, exactly so many. Scores start at 0, so that at first
    all stays.

    Args:
        penalty: weight of the sum of sigma(S) once the schedule is through.
        threshold: above 0 and below 0.5; 0.1 is sigma(-2.2).
        schedule: the share of the penalty at which progress; None: all of it from the first step on.
        first_step: when the schedule begins. A step is a batch.
        last_step: when it is through.
        budget: what stays in the end; None: what is above the threshold.
        granularity: what a unit is; None: single weights.
        params: which parameters are pruned.
        min_keep: the fewest units that stay in each parameter.
        rate: learning rate of the scores.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        penalty: float,
        threshold: float = 0.1,
        schedule: Schedule | None = None,
        first_step: int = 0,
        last_step: int = 0,
        budget: Budget | None = None,
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
        rate: float = 1.0,
    ) -> None:
        super().__init__(granularity, params, min_keep, rate, penalty)
        if not 0 < threshold < 0.5 or not 0 <= first_step <= last_step:
            raise ValueError(
                "threshold in (0, 0.5) and 0 <= first_step <= last_step are needed, got "
                f"{threshold}, {first_step} and {last_step}"
            )
        self.penalty, self.threshold, self.schedule, self.budget = penalty, threshold, schedule, budget
        self.first_step, self.last_step = first_step, last_step

    def draw(self) -> Keep:
        self.movement.penalty = self.penalty * self._ramp()
        scores = self.movement.score(self.target)
        return {
            group.name: (torch.sigmoid(scores[group.name]) > self.threshold)
            | topk_mask(scores[group.name], min(group.min_keep, group.size))
            for group in self.target.groups()
        }

    def last_mask(self) -> Keep:
        if self.budget is None:
            return self.draw()
        return self.granularity.allocate(self.movement.score(self.target), self.target.groups(), self.budget)

    def _ramp(self) -> float:
        if self.schedule is None or self.step >= self.last_step:
            return 1.0
        return self.schedule(max(0, self.step - self.first_step) / (self.last_step - self.first_step))
