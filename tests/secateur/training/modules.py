"""Modules that learn a line in microseconds, in the ways in which the suite's own learn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from secateur.training import Shuffled, cosine, generator_at

INPUTS = torch.randn(40, 6, generator=generator_at(0, 0))
TARGETS = INPUTS @ torch.linspace(-1, 1, 6)[:, None] + 0.5
DATA = Shuffled(30, 4, seed=3)

Strike = Callable[[int], object]


def nothing(step: int) -> None:
    """No accident at all."""


def send(number: signal.Signals, at: int) -> Strike:
    """A signal to this process while it computes step `at`."""
    return lambda step: os.kill(os.getpid(), number) if step == at else None


class _Line(lightning.LightningModule):
    score_name = "score"

    def __init__(self, strike: Strike = nothing) -> None:
        super().__init__()
        self.strike = strike
        self.steps_seen: list[int] = []
        self.line = nn.utils.skip_init(nn.Linear, 6, 1)
        with torch.no_grad():
            for parameter in self.line.parameters():
                parameter.fill_(0.1)

    def error(self, indices: Tensor) -> Tensor:
        return (self.line(INPUTS[indices]) - TARGETS[indices]).square().mean()

    def validation_score(self) -> float:
        return -float(self.error(torch.arange(30, 40)).detach())


class Automatic(_Line):
    """Dropout, Adam and a schedule that Lightning drives."""

    rate = 0.05

    def __init__(self, strike: Strike = nothing) -> None:
        super().__init__(strike)
        self.dropout = nn.Dropout(0.2)

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        self.steps_seen.append(step)
        self.strike(step)
        return (self.line(self.dropout(INPUTS[batch])) - TARGETS[batch]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=self.rate)
        return [optimizer], [LambdaLR(optimizer, cosine(3, 20))]


class Manual(_Line):
    """Two optimisers by hand, of which one is stepped more often, and state that is no tensor of the module's."""

    def __init__(self, strike: Strike = nothing) -> None:
        super().__init__(strike)
        self.automatic_optimization = False
        self.scale = 1.0

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        self.steps_seen.append(step)
        self.strike(step)
        weight, bias = self.optimizers()
        loss = self.scale * self.error(batch)
        weight.zero_grad()
        bias.zero_grad()
        self.manual_backward(loss)
        weight.step()
        if step % 2:
            bias.step()
        self.lr_schedulers().step()
        self.scale *= 0.99
        return loss

    def configure_optimizers(self) -> Any:
        optimizers = [Adam([self.line.weight], lr=0.05), Adam([self.line.bias], lr=0.02)]
        return optimizers, [LambdaLR(optimizers[0], cosine(3, 20))]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["scale"] = self.scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.scale = checkpoint["scale"]


class Growing(Manual):
    """A sum of terms, one more every fifth step: a new parameter takes the place of the old one in its optimiser."""

    def __init__(self, strike: Strike = nothing) -> None:
        super().__init__(strike)
        self.terms = nn.Parameter(torch.full((2, 1), 0.1))

    def error(self, indices: Tensor) -> Tensor:
        return (self.line(INPUTS[indices]) + self.terms.sum() - TARGETS[indices]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizers, schedules = super().configure_optimizers()
        optimizers[1].add_param_group({"params": [self.terms], "lr": 0.01})
        return optimizers, schedules

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % 5 == 4:
            optimizer = self.trainer.optimizers[1]
            state = optimizer.state.pop(self.terms)
            self.terms = nn.Parameter(torch.cat([self.terms.detach(), torch.randn(1, 1) * 0.1]))
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.cat([state[name], state[name].new_zeros(1, 1)])
            optimizer.state[self.terms] = state
            optimizer.param_groups[1]["params"] = [self.terms]
