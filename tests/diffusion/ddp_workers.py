"""What processes of a Lightning strategy train in the tests; the weights of each rank go into a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from diffusion.noising import Noising
from diffusion.train import DenoisingTask, DiffusionDistillation, Target, block_features
from diffusion.units import prunable
from secateur.recovery.distill import OutputError
from tests.diffusion.models import diffusers, random_model

STEPS, JOINT = 2, 4
"""Optimiser steps, and samples of each over all ranks."""


class BySample(DenoisingTask):
    """Noise and time step of a sample depend on the sample alone, not on those that share its batch."""

    def draw(self, batch: Mapping[str, Any]) -> tuple[dict[str, Any], Target]:
        rows = []
        for place, seed in enumerate(batch["seed"].tolist()):
            torch.manual_seed(seed)
            row = {name: values[place : place + 1] for name, values in batch.items() if name != "seed"}
            rows.append(super().draw(row))
        inputs = {name: torch.cat([row[name] for row, _ in rows]) for name in rows[0][0]}
        targets = [target for _, target in rows]
        return inputs, Target(torch.cat([one.values for one in targets]), torch.cat([one.weights for one in targets]))


class KeepWeights(lightning.Callback):
    """Every rank writes what it has learned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        held = {name: value.contiguous() for name, value in module.state_dict().items()}
        save_file(held, self.folder / f"{trainer.global_rank}-of-{trainer.world_size}.safetensors")


class InTurn(lightning.LightningDataModule):
    """Ranks take samples in turn; left to itself, Lightning would shuffle them."""

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        ranks, held = self.trainer.world_size, samples()
        order = DistributedSampler(held, ranks, self.trainer.global_rank, shuffle=False)  # type: ignore[arg-type]
        return DataLoader(held, JOINT // ranks, sampler=order)  # type: ignore[arg-type]


def samples() -> list[dict[str, Tensor]]:
    """Those of all steps."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(STEPS * JOINT, 1, 8, 8, generator=generator, dtype=torch.float64)
    return [
        {"latents": latents[place], "class_labels": torch.tensor(place % 10), "seed": torch.tensor(place)}
        for place in range(len(latents))
    ]


def distillation() -> DiffusionDistillation:
    """In float64: Adam would make rounding of vanishing gradients a step."""
    dense = random_model("dit", out_channels=1).double()
    network = prunable(copy.deepcopy(dense))
    student = network.cut({group.name: torch.arange(group.size) % 2 == 0 for group in network.groups()}).module
    task = BySample(Noising.of(diffusers.DDIMScheduler(prediction_type="v_prediction")))
    example = default_collate(samples()[:2])
    terms = [OutputError(), block_features(student)]
    return DiffusionDistillation(student, dense, terms, example, task, rate=1e-3)


def train(folder: Path, ranks: int, strategy: str) -> None:
    """Two steps of Lightning's own trainer, each on the same samples however many ranks there are."""
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=ranks,
        strategy=strategy,
        callbacks=[KeepWeights(folder)],
        default_root_dir=folder,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with torch.random.fork_rng():
        trainer.fit(distillation(), datamodule=InTurn())
