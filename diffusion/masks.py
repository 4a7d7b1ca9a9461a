"""EcoDiff: gates on the units of a diffusion model, fitted end to end through whole denoising trajectories.

scores = EcoDiff(steps=400).score(network, trajectories)
small = network.cut(allocate(scores, network.groups(), Budget(share=0.8, cost="params")))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from diffusion.recomputing import recomputed_blocks
from diffusion.trajectory import Trajectories
from secateur.allocation import UNITS
from secateur.budgeted_mask import BudgetedConcrete
from secateur.console import Report, silent, stretch
from secateur.masks import HardConcrete
from secateur.surgery import Network
from secateur.surgery.cost import evaluating
from secateur.training import FitRecord, Shuffled, fit
from secateur.units import Scores, UnitGroup


class Pressure(ABC):
    """What closes gates while the latents hold them open."""

    def gates(self, groups: Sequence[UnitGroup], **options: Any) -> HardConcrete:
        """The gates; `options` are those of `HardConcrete`."""
        return HardConcrete(groups, **options)

    def hold(self, mask: Any, progress: float) -> None:  # noqa: B027  most need nothing here
        """Called before each step, with the share of the fit that is done, and after the last with 1."""

    @abstractmethod
    def penalty(self, mask: HardConcrete) -> Float[Tensor, ""]:
        """What is added to the reconstruction loss."""


@dataclass(frozen=True)
class LogAlphaNorm(Pressure):
    """weight * mean over groups of |log alpha|_1 / size: the penalty of EcoDiff (arXiv 2412.02852).

    It draws log alpha to 0, where a gate is half open, and not below: scores of units that nothing needs end there, and
    near them those of units that hardly matter.

    Args:
        weight: beta; released configurations have 0.5 (SDXL, SD 3), 1 (SD 2) and 0.01 (FLUX, on another function).
    """

    weight: float = 0.5

    def penalty(self, mask: HardConcrete) -> Float[Tensor, ""]:
        return self.weight * torch.stack([logits.abs().mean() for logits in mask.logits]).mean()


@dataclass(frozen=True)
class ExpectedCost(Pressure):
    """weight * expected share of the cost that open gates keep: the L0 norm (Louizos et al., arXiv 1712.01312).

    Args:
        weight: against the mean squared error of the latents; it decides how much goes.
        cost: name of a cost of all groups, or "units".
    """

    weight: float = 0.1
    cost: str = UNITS

    def penalty(self, mask: HardConcrete) -> Float[Tensor, ""]:
        return self.weight * mask.penalty(self.cost)


@dataclass(frozen=True)
class ExpectedBudget(Pressure):
    """Holds the expected share of the cost at a budget in every step (see `secateur.budgeted_mask`): nothing to weigh.

    The budget falls from what the first gates keep to `share` in a line.

    Args:
        share: what stays in the end, above 0; 1 is what the first gates keep, nearly all.
        cost: name of a cost of all groups, or "units".
        fall: share of the fit in which the budget falls; then the gates settle.

    Raises:
        ValueError: an option is out of range.
    """

    share: float = 0.8
    cost: str = UNITS
    fall: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.fall <= 1):
            raise ValueError(f"share in (0, 1] and fall in [0, 1] are needed, got {self.share} and {self.fall}")

    def gates(self, groups: Sequence[UnitGroup], **options: Any) -> BudgetedConcrete:
        return BudgetedConcrete(groups, self.cost, **options)

    def hold(self, mask: Any, progress: float) -> None:
        fallen = min(1.0, progress / self.fall) if self.fall else 1.0
        mask.hold(mask.first_share - fallen * max(0.0, mask.first_share - self.share))
        mask.settle()

    def penalty(self, mask: HardConcrete) -> Float[Tensor, ""]:
        return mask.logits[0].new_zeros(())


@dataclass(frozen=True)
class EcoDiff:
    """Log alpha of hard-concrete gates, fitted to keep the final latents of whole trajectories (EcoDiff).

    Zhang et al. 2024, Effortless Efficiency (arXiv 2412.02852): the loss is the mean squared difference of the final
    latents with gates from those without, for the same prompt, noise and sampler, plus a penalty; only the gates are
    trained. Gradients go through all steps of the sampler, in the memory of one (see `diffusion.trajectory`).

    Unlike the released code, the gates are drawn once a trajectory and replayed, so that gradients are true; the noise
    is the textbook's and logits do not decay; and by default a budget takes the place of the penalty.

    Args:
        pressure: what closes gates.
        initial: first log alpha. Released: 3 (SDXL, FLUX), 2.5 (SD 2), 4 (SD 3), 10 (DiT).
        temperature: of the concrete distribution.
        stretch: ends of the interval that it is stretched to; below 0 and above 1.
        eps: see `secateur.masks.HardConcrete`; 0 is the textbook's. Released: 0.5 (SDXL, SD 2), 0.1 (FLUX), 1 (SD 3),
            with which gates are all but deterministic.
        rate: Adam's step size: one for all, or one for each kind of unit, which is the last part of a group's name
            ("heads", "neurons"). Released: 0.1 (SDXL), 0.2 (SD 2, SD 3), 0.5 for heads (FLUX).
        steps: optimiser steps. Released: 3 or 4 epochs over 100 prompts, 4 a step.
        batch_size: trajectories of a step.
        micro_batch: trajectories that are replayed together, under the same draw of the gates: memory is that of one
            model call on so many. None: the whole batch.
        recompute_blocks: whether each step's blocks are run again one by one, too: memory is that of one block and the
            inputs of all, for a forward more.
        seed: of the order of the trajectories, and of the gates.

    Raises:
        ValueError: an option is out of range.
    """

    pressure: Pressure = field(default_factory=ExpectedBudget)
    initial: float = 3.0
    temperature: float = 0.83
    stretch: tuple[float, float] = (-0.1, 1.1)
    eps: float = 0.0
    rate: float | Mapping[str, float] = 0.1
    steps: int = 400
    batch_size: int = 4
    micro_batch: int | None = None
    recompute_blocks: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rates = list(self.rate.values()) if isinstance(self.rate, Mapping) else [self.rate]
        if not all(rate > 0 for rate in rates) or self.batch_size < 1 or (self.micro_batch or 1) < 1 or self.steps < 0:
            raise ValueError(
                "rates above 0, batch sizes of at least 1 and steps of at least 0 are needed, got "
                f"{self.rate}, {self.batch_size}, {self.micro_batch} and {self.steps}"
            )

    def score(self, network: Network, calibration: Trajectories | None = None) -> Scores:
        """(size,) float64 log alpha of each group, to be hardened by any allocator.

        Args:
            network: the diffusion model with its units; it is not changed.
            calibration: what the latents are compared on.

        Raises:
            ValueError: there is no calibration, or latents are not finite: it names the step.
        """
        if calibration is None:
            raise ValueError("EcoDiff needs Trajectories as its calibration, got None")
        mask, _ = self.fit(network, calibration)
        logits = zip(mask.groups, mask.logits, strict=True)
        return {group.name: each.detach().double() for group, each in logits}

    def fit(
        self,
        network: Network,
        calibration: Trajectories,
        *,
        checkpoint: Path | None = None,
        resume: bool = False,
        report: Report = silent,
    ) -> tuple[HardConcrete, FitRecord]:
        """The fitted gates, in evaluation mode, and the record of the fit.

        `mask.keep(budget)` hardens them to a budget, exactly; `mask.keep()` keeps what is open.

        Args:
            network: the diffusion model with its units; it is not changed.
            calibration: what the latents are compared on.
            checkpoint, resume, report: as `secateur.training.fit`.

        Raises:
            ValueError: a kind of unit has no rate; latents are not finite: it names the step.
        """
        with evaluating(network.module), _frozen(network.module):
            module = _GateFit(network, self, calibration)
            module.take_targets(stretch(report, 0, 0.05))
            record = fit(
                module,
                Shuffled(calibration.count, min(self.batch_size, calibration.count), self.seed),
                steps=self.steps,
                seed=self.seed,
                checkpoint=checkpoint,
                resume=resume,
                identity={
                    "trajectories": calibration.count,
                    "sampler_steps": len(calibration.sampler),
                    "groups": {group.name: group.size for group in network.groups()},
                    "options": repr(self),
                },
                report=stretch(report, 0.05, 1),
            )
            if record.steps:
                self.pressure.hold(module.mask, 1.0)
        return module.mask.eval(), record


class _GateFit(lightning.LightningModule):
    def __init__(self, network: Network, options: EcoDiff, calibration: Trajectories) -> None:
        super().__init__()
        self.network, self.options, self.calibration = network, options, calibration
        gamma, zeta = options.stretch
        self.mask = options.pressure.gates(
            network.groups(),
            beta=options.temperature,
            gamma=gamma,
            zeta=zeta,
            initial=options.initial,
            seed=options.seed,
            eps=options.eps,
        )
        self.targets: list[Tensor] = []
        self.to(next(network.module.parameters()).device)

    def take_targets(self, report: Report) -> None:
        """Sample the whole model's latents, (...) each, on the CPU."""
        count = self.calibration.count
        for indices in torch.arange(count).split(self.micro_batch):
            report(float(indices[0]) / count, "sampling the whole model")
            self.targets += self.calibration.sample(self.network.module, indices).cpu()

    @property
    def micro_batch(self) -> int:
        return self.options.micro_batch or self.options.batch_size

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        self.options.pressure.hold(self.mask, step / self.options.steps)
        errors = [self._error(indices) * (len(indices) / len(batch)) for indices in batch.cpu().split(self.micro_batch)]
        return torch.stack(errors).sum() + self.options.pressure.penalty(self.mask)

    def _error(self, indices: Tensor) -> Tensor:
        """Mean squared difference of the final latents under one draw of the gates."""
        masks, denoise = self.mask(), self.calibration.predict(self.network.module, indices)

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            with self.network.masked(masks), self._recomputing(masks):
                return denoise(latents, timestep)

        noise, seeds = self.calibration.noise(indices, self.device), self.calibration.seeds(indices)
        latents = self.calibration.sampler.replayed(predict, noise, seeds, list(masks.values()))
        target = torch.stack([self.targets[index] for index in indices.tolist()])
        return (latents - target.to(latents)).square().mean()

    def _recomputing(self, masks: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        if not self.options.recompute_blocks:
            return nullcontext()
        return recomputed_blocks(self.network.module, lambda: self.network.masked(masks))

    def configure_optimizers(self) -> Optimizer:
        rate, parameters = self.options.rate, []
        for group, logits in zip(self.mask.groups, self.mask.logits, strict=True):
            kind = group.name.rpartition(".")[2]
            if isinstance(rate, Mapping) and kind not in rate:
                raise ValueError(f"no rate for units of kind {kind!r} (group {group.name!r}); there are {sorted(rate)}")
            parameters.append({"params": [logits], "lr": rate[kind] if isinstance(rate, Mapping) else rate})
        # As for any mask here: the sigmoid's slope falls e-fold a logit, so a long memory would halt the logits.
        return Adam(parameters, betas=(0.9, 0.95))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """While the context is open, no parameter requires a gradient, so that graphs do not hold what only they need."""
    trained: list[Any] = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
