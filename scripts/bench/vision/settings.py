"""What a run of the bench of vision transformers measures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from block_sparse import alternated
from torch import Tensor, nn

from secateur.recovery.distill import SoftTargets
from vit.augmentation import Augmentation
from vit.train import FineTune

BATCH = 32
"""Pictures whose time is measured."""

TAUGHT = 0.5
"""Share of the dense model's outputs in the loss of a recovery; the rest is the labels'."""

TERMS = (SoftTargets(weight=TAUGHT, temperature=2.0, dim=1),)


@dataclass(frozen=True)
class Settings:
    """Options of a run.

    Args:
        folder: where the networks that the bench trains itself are kept.
        quick: fewest pictures, steps, seeds and sizes: shows that all runs, its figures mean nothing.
    """

    folder: Path
    quick: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each draws other calibration pictures, and another order in training."""
        return (0,) if self.quick else (0, 1, 2)

    @property
    def sparsities(self) -> tuple[float, ...]:
        """Shares of the multiply-adds that go."""
        return (0.5,) if self.quick else (0.3, 0.5, 0.7)

    @property
    def speeds(self) -> tuple[float, ...]:
        """How many times fewer multiply-adds token methods are given."""
        return (2.0,) if self.quick else (1.5, 2.0, 3.0)

    @property
    def most(self) -> int | None:
        """Pictures of each part of a data set; None: all."""
        return 96 if self.quick else None

    @property
    def test_pictures(self) -> int:
        return 64 if self.quick else 5000

    @property
    def calibration_pictures(self) -> int:
        return 32 if self.quick else 256

    @property
    def probes(self) -> int:
        """Random probes of estimated Hessians."""
        return 1 if self.quick else 4

    @property
    def levels(self) -> int:
        """Of curves of distortion."""
        return 2 if self.quick else 8

    def recovery(self, steps: int) -> FineTune:
        """How a network is trained for a while: the same for all that are compared."""
        if self.quick:
            return FineTune(steps=2, batch_size=8, warmup=1)
        return FineTune(steps=steps, batch_size=64, rate=1e-3, warmup=10, augmentation=Augmentation(shift=1))

    def long_recovery(self) -> FineTune:
        """A full fine-tuning, with lower rates for lower layers: what is new moves most."""
        if self.quick:
            return self.recovery(2)
        return FineTune(
            steps=5000,
            batch_size=64,
            rate=3e-3,
            warmup=200,
            layer_decay=0.6,
            ema=0.998,
            augmentation=Augmentation(shift=1),
        )

    def times(self, runs: dict[str, nn.Module], inputs: Tensor, repeats: int = 15) -> dict[str, dict[str, float]]:
        """Milliseconds of each on the same pictures: the least of several, taking turns; see `alternated`."""
        with torch.no_grad():
            calls = {name: partial(network, inputs) for name, network in runs.items()}
            return alternated(calls, 1 if self.quick else repeats)

    def speed(self, network: nn.Module, dense: nn.Module, inputs: Tensor) -> dict[str, Any]:
        """How fast a network is beside the dense one.

        The speedup is of the processor's time, which other work on the machine does not count into; on an idle machine
        and one thread it is that of the clock.
        """
        times = self.times({"dense": dense, "ours": network}, inputs)
        return as_speed(times["ours"], times["dense"], len(inputs))


def as_speed(ours: dict[str, float], dense: dict[str, float], pictures: int) -> dict[str, float]:
    """What a row says of two times."""
    return {
        "latency_ms": ours["ms"],
        "dense_latency_ms": dense["ms"],
        "pictures_per_second": 1000 * pictures / ours["ms"],
        "speedup": dense["cpu_ms"] / ours["cpu_ms"],
        "speedup_by_clock": dense["ms"] / ours["ms"],
    }
