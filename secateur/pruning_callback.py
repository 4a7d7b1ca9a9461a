"""Pruning during training, as callbacks of any Lightning trainer.

    callback = PruningCallback(Magnitude(), Polynomial(3), Budget(share=0.1))
    Trainer(callbacks=[callback]).fit(module, loader)          # or secateur.training.fit(..., callbacks=[callback])

Removed weights are 0 after each optimiser step, automatic or by hand; what was removed when, and how far the schedule
is, is part of the checkpoint. Of `secateur.training.fit` use neither `ema` nor `validate_every` before the last mask is
in force: both can bring back weights from before.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from secateur.allocation import Budget
from secateur.granularity import Granularity, ParamsFilter, Unstructured, Weights, matrices, spread
from secateur.schedules import OneShot, Schedule, budget_at, grow_prune, without
from secateur.units import Criterion, Keep, fold


class SparseCallback(lightning.Callback):
    """What callbacks of sparse training share: the weights of the module, the mask in force, hooks, and steps.

    Args:
        granularity: what a unit is; None: single weights.
        params: which parameters have masks.
        min_keep: the fewest units that stay in each parameter.
    """

    def __init__(self, granularity: Granularity | None, params: ParamsFilter, min_keep: int) -> None:
        self.granularity: Granularity = granularity or Unstructured()
        self.params, self.min_keep = params, min_keep
        self.step = 0
        self.keep: Keep = {}
        self._target: Weights | None = None
        self._handles: list[Any] = []

    @property
    def target(self) -> Weights:
        """The weights in training."""
        if self._target is None:
            raise ValueError("training has not started: there are no weights yet")
        return self._target

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._target = Weights(pl_module, self.granularity, self.params, self.min_keep)
        sizes = {group.name: group.size for group in self._target.groups()}
        wrong = {name: len(mask) for name, mask in self.keep.items() if sizes.get(name) != len(mask)}
        if wrong or (self.keep and set(self.keep) != set(sizes)):
            raise ValueError(f"masks are for other weights: they have units {wrong or sorted(self.keep)}, not {sizes}")
        self.keep = {name: mask.to(pl_module.device) for name, mask in self.keep.items()}

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._release()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._target = None

    def gradients(self) -> dict[str, Tensor]:
        """Name -> gradient of the weights, in the shape of `target.tensors()`.

        Raises:
            ValueError: a weight has none.
        """
        weights = self.target.weights()
        missing = [name for name, weight in weights.items() if weight.grad is None]
        if missing:
            raise ValueError(f"{missing} have no gradients: are they frozen, or not used by the loss?")
        return {name: self.granularity.view(weight.grad.contiguous()) for name, weight in weights.items()}  # type: ignore[union-attr]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """No gradient for removed weights, so that they count in no norm."""
        for group, weight in zip(self.target.groups(), self.target.weights().values(), strict=True):
            if self.keep and weight.grad is not None:
                mask = spread(self.keep[group.name], group.members[0], self.granularity.view(weight.detach()))
                mask = mask.expand(self.granularity.view(weight.detach()).shape).reshape(weight.shape)
                weight.grad.masked_fill_(~mask, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "keep": dict(self.keep)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.keep = state_dict["step"], dict(state_dict["keep"])


class DenseBetweenSteps(SparseCallback):
    """Weights that each step changes for its loss; behind it, or where it fails, they are dense again.

    Args: as for `SparseCallback`.
    """

    _dense: dict[str, Tensor] | None = None

    @abstractmethod
    def put_back(self, dense: dict[str, Tensor]) -> None:
        """Make the weights dense, from what they were at `remember()`, in the shapes of `target.tensors()`."""

    def remember(self) -> None:
        """Keep a copy of the weights until the end of the step."""
        self._dense = {name: view.clone() for name, view in self.target.tensors().items()}

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step += 1
        self._restore()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if self._target is not None:
            self._restore()
        super().on_exception(trainer, pl_module, exception)

    @torch.no_grad()
    def _restore(self) -> None:
        if self._dense is not None:
            self.put_back(self._dense)
        self._dense = None


class PruningCallback(SparseCallback):
    """Prunes gradually to a budget while a module trains, and holds what was removed at 0.

    From `first_step` to `last_step`, every `every` steps, and at `last_step`, the weights are scored and the best stay;
    then the mask is frozen. Gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878) is `Magnitude()` with
    `Polynomial(3)`. Removed weights get neither gradient nor update, and stay removed.

    With `regrow` above 0 it is GraNet (Liu et al. 2021, arXiv 2106.10404): after each pruning a fraction of each
    parameter's weights is exchanged for as many whose gradients are largest; the fraction falls by half a cosine to 0
    at `last_step`. New weights start at 0, with no memory in the optimiser. With `OneShot` from a sparse start that is
    RigL.

    A step is a batch. Steps count the batches that have been trained on: at `first_step=100` the first masks come after
    100 of them; at 0 they come before the first.

    Args:
        criterion: scores the weights (see `secateur.granularity.Weights`).
        schedule: how much is gone at which progress.
        budget: what stays in the end.
        granularity: what a unit is; None: single weights.
        calibration: what the criterion looks through.
        first_step: when it begins.
        last_step: when the budget is reached; None: half of the training's steps, so that the rest can recover.
        every: steps between masks.
        regrow: fraction of weights that is exchanged after each pruning, at the start.
        params: which parameters are pruned; by default those of two dimensions or more.
        min_keep: the fewest units that stay in each parameter.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        criterion: Criterion,
        schedule: Schedule,
        budget: Budget,
        granularity: Granularity | None = None,
        *,
        calibration: Any = None,
        first_step: int = 0,
        last_step: int | None = None,
        every: int = 100,
        regrow: float = 0.0,
        params: ParamsFilter = matrices,
        min_keep: int = 1,
    ) -> None:
        super().__init__(granularity, params, min_keep)
        if first_step < 0 or every < 1 or not 0 <= regrow <= 1:
            raise ValueError(
                f"first_step >= 0, every >= 1 and regrow in [0, 1] are needed, got {first_step}, {every} and {regrow}"
            )
        if last_step is not None and last_step < first_step:
            raise ValueError(f"last_step must not be before first_step {first_step}, got {last_step}")
        self.criterion, self.schedule, self.budget, self.calibration = criterion, schedule, budget, calibration
        self.first_step, self.last_step, self.every, self.regrow = first_step, last_step, every, regrow
        self._gradients: dict[str, Tensor] | None = None

    @classmethod
    def fixed(
        cls, keep: Keep, granularity: Granularity | None = None, params: ParamsFilter = matrices, min_keep: int = 1
    ) -> Self:
        """Holds given masks, and changes nothing about them: an ordinary masked fine-tune."""
        callback = cls(
            _Never(), OneShot(), Budget(share=1.0), granularity, last_step=0, params=params, min_keep=min_keep
        )
        callback.step, callback.keep = 1, dict(keep)
        return callback

    def progress(self) -> float:
        """How far pruning is, 0 to 1."""
        assert self.last_step is not None
        if self.step >= self.last_step:
            return 1.0
        return max(0, self.step - self.first_step) / (self.last_step - self.first_step)

    def due(self, step: int) -> bool:
        """Whether the masks change once `step` batches are done."""
        assert self.last_step is not None
        if step == self.last_step:
            return True
        return self.first_step <= step < self.last_step and (step - self.first_step) % self.every == 0

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.last_step is None:
            steps = trainer.estimated_stepping_batches
            if not math.isfinite(steps):
                raise ValueError("the training has no end: give last_step, the step at which the budget is reached")
            self.last_step = max(self.first_step, int(steps) // 2)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._handles += [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]
        if self.step == 0 and not self.keep and self.due(0):
            self._prune(trainer)
        self.apply()

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        if self.regrow and self.due(self.step + 1):
            self._gradients = {name: gradient.abs() for name, gradient in self.gradients().items()}
        self.mask_gradients()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.step += 1
        if self.due(self.step):
            self._prune(trainer)
            self.apply()
        self._gradients = None

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.apply()

    def apply(self) -> None:
        """Write the zeros."""
        if self.keep:
            self.target.write_zeros(self.keep)

    def _prune(self, trainer: lightning.Trainer) -> None:
        before, groups = self.keep, self.target.groups()
        scores = self.criterion.score(self.target, self.calibration)
        left = without(scores, before) if before else scores
        self.keep = self.granularity.allocate(
            left, groups, budget_at(self.schedule, self.progress(), self.budget, groups)
        )
        fraction = self.regrow * 0.5 * (1 + math.cos(math.pi * self.progress()))
        if fraction and self._gradients is not None:
            for group in groups:
                name, growth = group.name, fold(self._gradients, group)
                self.keep[name] = grow_prune(self.keep[name], scores[name], growth, fraction)
            self._forget(trainer, {name: self.keep[name] & ~before[name] for name in before})

    @torch.no_grad()
    def _forget(self, trainer: lightning.Trainer, new: Mapping[str, Tensor]) -> None:
        """Weights that come back have no momentum from the time before."""
        for group, weight in zip(self.target.groups(), self.target.weights().values(), strict=True):
            if group.name not in new or not bool(new[group.name].any()):
                continue
            for optimizer in trainer.optimizers:
                for value in optimizer.state.get(weight, {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape and value.is_contiguous():
                        view = self.granularity.view(value)
                        view.masked_fill_(spread(new[group.name], group.members[0], view), 0)


class _Never:
    """The criterion of masks that are given."""

    def score(self, target: Any, calibration: Any = None) -> Any:
        raise ValueError("fixed masks are not scored")
