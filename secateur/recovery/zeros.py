"""Fine-tuning a sparse network without filling its zeros."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def zeros_of(module: nn.Module) -> dict[str, Tensor]:
    """Name of each parameter of two dimensions or more that holds zeros -> (its shape) bool, True where it is 0.

    Vectors (biases, norms) are left out: many start at 0 and are meant to learn.
    """
    zeros = {name: value.detach() == 0 for name, value in module.named_parameters() if value.dim() > 1}
    return {name: zero for name, zero in zeros.items() if bool(zero.any())}


class HoldZeros(lightning.Callback):
    """Weights that are 0 when training starts are 0 after every step: the mask of any pruning, as found in the weights.

    For `secateur.training.fit(..., callbacks=[HoldZeros()])` or any trainer. Their gradients are 0 as well, so that
    they count in no norm. Adapters of `secateur.recovery.lora` hold zeros by themselves; their own are let go.
    """

    def __init__(self) -> None:
        self.zeros: dict[str, Tensor] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.zeros:
            self.zeros = {name: zero for name, zero in zeros_of(pl_module).items() if not _of_adapter(pl_module, name)}
        self.zeros = {name: zero.to(pl_module.device) for name, zero in self.zeros.items()}

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for name, zero in self.zeros.items():
            gradient = pl_module.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(zero, 0)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, zero in self.zeros.items():
            pl_module.get_parameter(name).masked_fill_(zero, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"zeros": dict(self.zeros)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.zeros = dict(state_dict["zeros"])


def _of_adapter(module: nn.Module, name: str) -> bool:
    """Whether the parameter belongs to a parametrisation, whose factors may well start at 0."""
    owner = module.get_submodule(name.rpartition(".")[0])
    return not isinstance(owner, parametrize.ParametrizationList) and any(
        isinstance(module.get_submodule(".".join(name.split(".")[:end])), parametrize.ParametrizationList)
        for end in range(1, name.count(".") + 1)
    )
