"""Movement importance: whether training moves weights away from 0, or towards it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.optim import Optimizer

from secateur.granularity import Granularity, ParamsFilter, Unstructured, Weights, matrices
from secateur.units import Prunable, Scores, fold


class Movement(lightning.Callback):
    """S = -rate * sum over steps of (g w + penalty sigma'(S)), accumulated while a module trains.

    Movement pruning (Sanh et al. 2020, arXiv 2005.07683, eq. 4 and 6): dL/dS of a straight-through mask is g w, so that
    weights which grow score above 0 and weights which shrink below, whatever their size. `penalty` is the weight of the
    soft version's sum of sigma(S), which pulls all scores down (section 4.2; 0 is the hard version). Over blocks and
    rows the gradients of a unit's weights add up: block movement (Lagunas et al. 2021, arXiv 2109.04838, section 3).

    Units of any other kind (heads, channels, features of a stream) are watched as `units`: a unit's score is the sum
    over all weights that it owns.

    It is a callback and a criterion: train with it, then score with it. With `PruningCallback(movement, ...)` list it
    in front of that one. Scores of removed weights rest there, as w = 0; `MovementPruning` in
    `secateur.masked_training` keeps them moving, so that removed weights can return.

    Args:
        granularity: what a unit is; None: single weights.
        params: which parameters are watched; by default those of two dimensions or more.
        rate: of the scores, as a learning rate; it changes no order without a penalty.
        penalty: see above.
        units: a network or other target whose tensors train, and whose groups are scored; it takes the place of
            `granularity`. None: weights.

    Raises:
        ValueError: `rate` is not above 0, or `penalty` is negative.
    """

    def __init__(
        self,
        granularity: Granularity | None = None,
        params: ParamsFilter = matrices,
        rate: float = 1.0,
        penalty: float = 0.0,
        units: Prunable | None = None,
    ) -> None:
        if not rate > 0 or penalty < 0:
            raise ValueError(f"rate > 0 and penalty >= 0 are needed, got {rate} and {penalty}")
        self.granularity: Granularity = granularity or Unstructured()
        self.params, self.rate, self.penalty, self.units = params, rate, penalty, units
        self.scores: Scores = {}
        self._target: Prunable | None = None

    @property
    def state_key(self) -> str:
        """Of its part of a checkpoint: a training may watch units of several kinds."""
        watched = repr(self.granularity) if self.units is None else self.units.groups()[0].name
        return f"{type(self).__qualname__} of {watched}"

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._target = self.units or Weights(pl_module, self.granularity, self.params)
        trained = {id(parameter) for parameter in pl_module.parameters()}
        if not any(id(weight) in trained for weight in self._weights(self._target).values()):
            raise ValueError(f"{type(pl_module).__name__} trains none of the weights whose movement is watched")
        self.scores = {name: score.to(pl_module.device) for name, score in self.scores.items()}

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._target is not None
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        weights = {n: w for n, w in self._weights(self._target).items() if id(w) in stepped and w.grad is not None}
        self.accumulate(self._target, {name: weight.grad for name, weight in weights.items()})  # type: ignore[misc]

    @torch.no_grad()
    def accumulate(
        self, target: Prunable, gradients: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take in one step.

        Args:
            target: the weights.
            gradients: name -> gradient, shaped like the parameter; parameters that are absent rest.
            values: name -> w, where it is not what `target` holds.
        """
        weights, tensors = values or self._weights(target), target.tensors()
        products = {name: (grad * weights[name]).reshape(tensors[name].shape) for name, grad in gradients.items()}
        for group in target.groups():
            if not any(member.param in products for member in group.members):
                continue
            change = fold(products, group)
            before = self.scores.get(group.name, torch.zeros_like(change))
            if self.penalty:
                gate = torch.sigmoid(before)
                change = change + self.penalty * gate * (1 - gate)
            self.scores[group.name] = before - self.rate * change

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._target = None

    def score(self, target: Prunable, calibration: object = None) -> Scores:
        """(size,) scores of each group; 0 before the first step. The calibration is not used.

        Raises:
            ValueError: the target's groups are not those that were watched.
        """
        tensors = target.tensors()
        found = {}
        for group in target.groups():
            score = self.scores.get(group.name)
            if score is None and not self.scores:
                score = torch.zeros(group.size, device=tensors[group.members[0].param].device)
            if score is None or score.shape != (group.size,):
                have = {name: len(value) for name, value in self.scores.items()}
                raise ValueError(f"group {group.name!r} of {group.size} units was not watched; there are {have}")
            found[group.name] = score.clone()
        return found

    def _weights(self, target: Prunable) -> dict[str, Tensor]:
        """What is watched, by name, in its own shape."""
        if isinstance(target, Weights):
            return target.weights()
        return {name: tensor for name, tensor in target.tensors().items() if self.params(name, tensor)}

    def above(self, threshold: float) -> dict[str, Tensor]:
        """Group name -> (size,) bool: sigma(S) > threshold, the soft version's own choice of what stays."""
        return {name: torch.sigmoid(score) > threshold for name, score in self.scores.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = dict(state_dict["scores"])
