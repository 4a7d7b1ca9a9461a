"""Training in which the loss sees pruned weights and every weight behind them is updated, removed ones too.

Three callbacks of any Lightning trainer, which differ in what the loss sees: weights under a mask (`SoftMasking`), soft
thresholds (`SoftThreshold`), or a soft mask that the weights themselves give (`DifferentiablePruning`). Between steps,
and in checkpoints, weights are dense: a validation in the midst of training sees all of them. At the end the pruned
weights are written.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from secateur.allocation import Allocator, Budget
from secateur.granularity import Columns, Granularity, NofM, ParamsFilter, Unstructured, keep_n_of_m, matrices, spread
from secateur.maths import topk_mask
from secateur.pruning_callback import DenseBetweenSteps
from secateur.schedules import Schedule, budget_at
from secateur.selection import keep_top
from secateur.units import Keep, Scores, UnitGroup, fold


class DenseTraining(DenseBetweenSteps):
    """In each step the loss is computed with `seen()` in the place of the weights, and the weights are updated.

    Args:
        schedule: how much is gone at which progress.
        budget: what stays in the end.
        last_step: when the budget is reached; a step is a batch.
        first_step: when pruning begins.
        granularity: what a unit is.
        params: which parameters are pruned.

    Raises:
        ValueError: `first_step` is not between 0 and `last_step`, or the training has several optimisers.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        last_step: int,
        first_step: int,
        granularity: Granularity | None,
        params: ParamsFilter,
        min_keep: int,
    ) -> None:
        super().__init__(granularity, params, min_keep)
        if not 0 <= first_step <= last_step:
            raise ValueError(f"0 <= first_step <= last_step is needed, got {first_step} and {last_step}")
        self.schedule, self.budget, self.first_step, self.last_step = schedule, budget, first_step, last_step

    @abstractmethod
    def seen(self) -> dict[str, Tensor]:
        """What the loss sees in the present step, by name, in the shapes of `target.tensors()`, which are dense."""

    def pulled(self, name: str, gradient: Tensor, dense: Tensor) -> Tensor:
        """The gradient of a dense weight from that of what was seen: the same one (straight through)."""
        return gradient

    def budget_now(self) -> Budget:
        """What stays in the present step."""
        progress = 1.0
        if self.step < self.last_step:
            progress = max(0, self.step - self.first_step) / (self.last_step - self.first_step)
        return budget_at(self.schedule, progress, self.budget, self.target.groups())

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(f"{type(self).__name__} needs one optimiser, got {len(trainer.optimizers)}")

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seen = self.seen()
        self.remember()
        self._write(seen)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._dense is None:
            return
        for name, weight in self.target.weights().items():
            if weight.grad is not None:
                gradient = self.granularity.view(weight.grad.contiguous())
                weight.grad = self.pulled(name, gradient, self._dense[name]).reshape(weight.shape)
        self._restore()

    @torch.no_grad()
    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._write(self.final())

    def final(self) -> dict[str, Tensor]:
        """What the weights become in the end."""
        return self.seen()

    def _write(self, values: dict[str, Tensor]) -> None:
        for name, view in self.target.tensors().items():
            view.copy_(values[name])

    def put_back(self, dense: dict[str, Tensor]) -> None:
        self._write(dense)

    def _masked(self, keep: Keep) -> dict[str, Tensor]:
        tensors = self.target.tensors()
        return {
            group.name: tensors[group.name] * spread(keep[group.name], group.members[0], tensors[group.name])
            for group in self.target.groups()
        }

    def _sizes(self, power: float) -> Scores:
        """Group name -> (size,) sum of |w|^power of each unit."""
        tensors = {name: view.detach().abs().pow(power) for name, view in self.target.tensors().items()}
        return {group.name: fold(tensors, group) for group in self.target.groups()}


class SoftMasking(DenseTraining):
    """The loss sees the best units alone; gradients reach all of them, so that removed ones can return.

    Humble et al. 2022, Soft Masking for Cost-Constrained Channel Pruning (arXiv 2211.02206): W' = W * m, the gradient
    of W is that of W', and every few steps m is chosen anew by importance under a cost budget. Importance is |sum over
    the unit of g w| by the dense weights, a sum over the steps since the last choice; for costs that are tables take
    `secateur.distortion.allocate_by_tables` as the allocator. Until the first choice nothing is masked. Whether and how
    the paper rescales batch norms was not checked, so none is: see `secateur.recovery.normalise`.

    Args:
        schedule, budget, last_step, first_step: see `DenseTraining`.
        every: steps between choices.
        granularity: what a unit is; None: columns, inputs, as in the paper.
        allocator: chooses; None: the granularity's own rule.
        params: which parameters are pruned.
        min_keep: the fewest units that stay in each parameter.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        last_step: int,
        first_step: int = 0,
        every: int = 10,
        granularity: Granularity | None = None,
        allocator: Allocator | None = None,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
    ) -> None:
        super().__init__(schedule, budget, last_step, first_step, granularity or Columns(), params, min_keep)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.every, self.allocator = every, allocator or self.granularity.allocate
        self.importance: Scores = {}

    def seen(self) -> dict[str, Tensor]:
        due = self.step >= self.first_step and (self.step - self.first_step) % self.every == 0
        if self.importance and (due or self.step == self.last_step):
            self.keep = self.allocator(self.importance, self.target.groups(), self.budget_now())
            self.importance = {}
        return self._masked(self.keep) if self.keep else dict(self.target.tensors())

    def final(self) -> dict[str, Tensor]:
        scores = self.importance or self._sizes(1.0)
        if not self.keep or self.step < self.last_step:
            self.keep = self.allocator(scores, self.target.groups(), self.budget_now())
        return self._masked(self.keep)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        if self._dense is not None:
            moved = {name: gradient * self._dense[name] for name, gradient in self.gradients().items()}
            for group in self.target.groups():
                found = fold(moved, group).abs()
                self.importance[group.name] = self.importance.get(group.name, 0) + found
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "importance": dict(self.importance)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.importance = dict(state_dict["importance"])


class SoftThreshold(DenseTraining):
    """The loss sees sign(w) max(|w| - t, 0), and the gradient goes straight through to all weights.

    ST-3 (Vanderschueren and De Vleeschouwer, WACV 2023, arXiv 2212.01076): t is the |w| of the smallest weights of the
    whole model that the schedule (1 - (1 - x)^power in the released code, `Polynomial`) has removed. What is left
    enters and leaves 0 without a jump. At the end the thresholded weights are written.

    Args:
        schedule, budget, last_step, first_step: see `DenseTraining`.
        by_width: compare |w| sqrt(sum of the weight's dimensions), as ST-3(sigma) does: sizes relative to what they are
            at initialisation.
        rescale: multiply what each output sees by 1.01 / (r + 0.01), r the share of the sum of |w| in weights above t,
            as an option of the released code does.
        params: which parameters are pruned.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        last_step: int,
        first_step: int = 0,
        by_width: bool = False,
        rescale: bool = False,
        params: ParamsFilter = matrices,
    ) -> None:
        super().__init__(schedule, budget, last_step, first_step, Unstructured(), params, min_keep=0)
        self.by_width, self.rescale = by_width, rescale

    def seen(self) -> dict[str, Tensor]:
        weights = self.target.weights()
        widths = {name: math.sqrt(sum(w.shape)) if self.by_width else 1.0 for name, w in weights.items()}
        scores = {name: view.abs() * widths[name] for name, view in self.target.tensors().items()}
        keep = keep_top(scores, self.target.groups(), self.budget_now())
        removed = [float(scores[name][~kept].max()) for name, kept in keep.items() if not bool(kept.all())]
        limit = max(removed, default=0.0)
        self.keep = keep
        return {name: self._thresholded(w.detach(), limit / widths[name], keep[name]) for name, w in weights.items()}

    def _thresholded(self, weight: Tensor, limit: float, keep: Tensor) -> Tensor:
        sizes = weight.abs()
        small = torch.where(keep.view(weight.shape), weight.sign() * (sizes - limit).clamp_min(0), 0)
        if self.rescale and not bool(keep.all()):
            by_output = (sizes.flatten(1) * keep.view(weight.shape).flatten(1)).mean(1) + 1e-6
            share = by_output / (sizes.flatten(1).mean(1) + 1e-6)
            small = small * (1.01 / (share + 0.01)).view(-1, *[1] * (weight.ndim - 1))
        return small.view(-1)


class DifferentiablePruning(DenseTraining):
    """The loss sees w m(w), m = sigmoid((w^2 - t^2) / temperature): a soft mask without parameters of its own.

    PDP (Cho et al. 2023, arXiv 2305.11203): t^2 lies in the middle between the least unit that the budget keeps and the
    largest that it does not, so that there m = 1/2; the gradient is the product's own, with t held: d(w m)/dw = m + 2
    w^2 m (1 - m) / temperature. Each parameter's share is set once, by the sizes of all weights at `first_step`, and
    then reached by the schedule. Of units of several weights w^2 is the sum of their squares, of N:M weights t is that
    of the m neighbours. At the end the mask is hard.

    Args:
        schedule, budget, last_step, first_step: see `DenseTraining`.
        temperature: tau; the smaller, the harder the mask. 1e-4 is a re-implementation's; the paper's was not
            checked.
        granularity: what a unit is; None: single weights.
        params: which parameters are pruned.
        min_keep: the fewest units that stay in each parameter.

    Raises:
        ValueError: the temperature is not above 0.
    """

    def __init__(
        self,
        schedule: Schedule,
        budget: Budget,
        last_step: int,
        first_step: int = 0,
        temperature: float = 1e-4,
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
    ) -> None:
        super().__init__(schedule, budget, last_step, first_step, granularity, params, min_keep)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = temperature
        self.counts: dict[str, int] = {}
        self._masks: dict[str, Tensor] = {}

    def seen(self) -> dict[str, Tensor]:
        if self.step < self.first_step:
            self._masks = {}
            return dict(self.target.tensors())
        energies = self._sizes(2.0)
        self._masks = {}
        for group in self.target.groups():
            limit = self._limit(group, energies)
            mask = torch.sigmoid((energies[group.name] - limit) / self.temperature)
            self._masks[group.name] = torch.where(limit < 0, torch.ones_like(mask), mask)
        return self._masked(self._masks)

    def final(self) -> dict[str, Tensor]:
        energies = self._sizes(2.0)
        if isinstance(self.granularity, NofM):
            n, m = self.granularity.n, self.granularity.m
            self.keep = {name: keep_n_of_m(found, self._count(m, n), m) for name, found in energies.items()}
        else:
            self._share_out(energies)
            counts = {group.name: self._count(group.size, self.counts[group.name]) for group in self.target.groups()}
            self.keep = {name: topk_mask(found, counts[name]) for name, found in energies.items()}
        return self._masked(self.keep)

    def pulled(self, name: str, gradient: Tensor, dense: Tensor) -> Tensor:
        if name not in self._masks:
            return gradient
        group = next(group for group in self.target.groups() if group.name == name)
        mask = self._masks[name]
        along = fold({name: gradient * dense}, group) * 2 * mask * (1 - mask) / self.temperature
        member = group.members[0]
        return gradient * spread(mask, member, dense) + dense * spread(along, member, dense)

    def _limit(self, group: UnitGroup, energies: Scores) -> Float[Tensor, ...]:
        """t^2 of the units of a group: () or (size,); below 0 where all stay."""
        found = energies[group.name]
        if isinstance(self.granularity, NofM):
            rows = found.view(-1, self.granularity.m)
            return _middle(rows, self._count(rows.shape[1], self.granularity.n)).repeat_interleave(rows.shape[1])
        self._share_out(energies)
        return _middle(found[None], self._count(group.size, self.counts[group.name]))[0]

    def _share_out(self, energies: Scores) -> None:
        """How many units each parameter keeps in the end: set once."""
        if not self.counts:
            keep = self.granularity.allocate(energies, self.target.groups(), self.budget)
            self.counts = {name: int(kept.sum()) for name, kept in keep.items()}

    def _count(self, size: int, last: int) -> int:
        """How many of `size` stay now, on the way to `last`."""
        progress = 1.0
        if self.step < self.last_step:
            progress = max(0, self.step - self.first_step) / (self.last_step - self.first_step)
        return last + round((size - last) * (1 - self.schedule(progress)))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counts": dict(self.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.counts = dict(state_dict["counts"])


def _middle(rows: Float[Tensor, "rows width"], count: int) -> Float[Tensor, " rows"]:
    """(rows,) numbers between the `count` largest of each row and the others; -1 where all are among them."""
    if count >= rows.shape[1]:
        return rows.new_full((len(rows),), -1.0)
    ordered = rows.sort(1, descending=True).values
    # With none to keep, the limit is above all.
    return 0.5 * (ordered[:, count - 1] + ordered[:, count]) if count else ordered[:, 0] * 2 + 1
