"""What a run of the bench of networks measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from networks.models import KINDS, Kind, example
from networks.training import Labels, Recipe, accuracy, dense
from secateur.surgery.cost import count_macs, count_params, measure_latency

LATENCY_BATCH = 64


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of a run.

    Args:
        networks: names in `KINDS`.
        folder: where the trained networks are kept.
        limit_seconds: how long a process of the cost section may take.
        quick: fewest pictures, steps, seeds and sizes: shows that all runs, its figures mean nothing.
    """

    networks: tuple[str, ...]
    folder: Path
    limit_seconds: float = 600.0
    quick: bool = False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Each draws other calibration pictures, and another order in fine-tuning."""
        return (0,) if self.quick else (0, 1, 2)

    @property
    def structured(self) -> tuple[float, ...]:
        """Shares of the multiply-adds that go with units."""
        return (0.5,) if self.quick else (0.5, 0.7, 0.9)

    @property
    def unstructured(self) -> tuple[float, ...]:
        """Shares of the weights that become 0."""
        return (0.8,) if self.quick else (0.8, 0.9, 0.95)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Parameters of the networks whose scoring is measured."""
        return (10_000, 100_000) if self.quick else (1_000_000, 10_000_000, 100_000_000)

    @property
    def test_pictures(self) -> int:
        return 200 if self.quick else 2000

    @property
    def all_pictures(self) -> int:
        """Test pictures that the dense networks are judged by once more."""
        return 200 if self.quick else 10_000

    @property
    def recipe(self) -> Recipe:
        """What every pruned network is fine-tuned by."""
        return Recipe(2 if self.quick else 60)

    @property
    def probes(self) -> int:
        """Random probes of estimated Hessians."""
        return 1 if self.quick else 4

    def calibration(self, seed: int, batch: int = 16, temperature: float = 1.0) -> Labels:
        """The training pictures that criteria look at."""
        return Labels(32 if self.quick else 256, batch, seed, temperature)

    def dense(self, name: str) -> tuple[Kind, nn.Module, dict[str, Any]]:
        """A network, trained, and the record of its training."""
        return KINDS[name], *dense(name, self.folder, 0.005 if self.quick else 1.0)

    def judged(self, network: nn.Module, seed: int) -> dict[str, Any]:
        """What a row says about a network: its cost, and how right it is before and after fine-tuning.

        Latency is that of 64 pictures, for the first seed alone.
        """
        facts: dict[str, Any] = {"seed": seed, "params": count_params(network), "macs": count_macs(network, example())}
        if seed == self.seeds[0]:
            facts |= self.latency(network)
        return facts | self.accuracies(network, seed)

    def latency(self, network: nn.Module) -> dict[str, float]:
        """Milliseconds for 64 pictures."""
        speed = measure_latency(network, example(LATENCY_BATCH), repeats=1 if self.quick else 5)
        return {"latency_ms": speed.median_ms, "fastest_latency_ms": speed.minimum_ms}

    def accuracies(self, network: nn.Module, seed: int) -> dict[str, float]:
        """Shares of the test pictures that are classified right."""
        tuned = self.recipe(network, seed)
        return {
            "accuracy": accuracy(network, self.test_pictures),
            "accuracy_tuned": accuracy(tuned, self.test_pictures),
        }
