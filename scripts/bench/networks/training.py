"""Training the dense networks once, fine-tuning pruned ones, and how right they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.models import KINDS
from secateur.datasets import Labelled, fashion_mnist
from secateur.recovery.zeros import HoldZeros
from secateur.tensor_files import TensorFormat
from secateur.training import Shuffled, cosine, fit
from secateur.training.seeding import seeded

FORMAT = TensorFormat("dense network of the bench", 1)
BATCH = 64
PIXELS = (-1.0, 2.0)
"""What black and white become: of mean about 0 and deviation about 1 on Fashion-MNIST."""


@lru_cache(maxsize=2)
def pictures(split: str) -> Labelled:
    """Fashion-MNIST's pictures: "train" or "test"."""
    return fashion_mnist(split)  # type: ignore[arg-type]


def inputs_of(data: Labelled) -> Tensor:
    """(N, 1, 28, 28) what a network is given."""
    return data.pixels(*PIXELS)


class Classifier(lightning.LightningModule):
    """A network that learns classes by cross-entropy, with AdamW whose rate falls as a cosine.

    Args:
        network: is trained in place.
        rate: the largest learning rate.
        steps: of the whole training.
        flip: mirror half of the pictures.
    """

    def __init__(self, network: nn.Module, rate: float, steps: int, flip: bool = False) -> None:
        super().__init__()
        self.network, self.rate, self.steps, self.flip = network, rate, steps, flip

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        data = pictures("train").subset(batch)
        inputs = inputs_of(data)
        if self.flip:
            mirrored = torch.rand(len(inputs)) < 0.5
            inputs = torch.where(mirrored[:, None, None, None], inputs.flip(-1), inputs)
        return F.cross_entropy(self.network(inputs), data.labels)

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.network.parameters(), self.rate, weight_decay=0.01)
        factor = cosine(min(self.steps // 10, 200), self.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The short fine-tune that every pruned network gets, the same for all.

    Args:
        steps: of gradient descent.
        rate: the largest learning rate.
    """

    steps: int
    rate: float = 1e-3

    def __call__(self, network: nn.Module, seed: int, callbacks: tuple[lightning.Callback, ...] = ()) -> nn.Module:
        """A copy that was trained on; what is 0 in its weights stays 0."""
        tuned = copy.deepcopy(network).train()
        module = Classifier(tuned, self.rate, self.steps)
        batches = Shuffled(len(pictures("train")), BATCH, seed)
        fit(module, batches, steps=self.steps, seed=seed, callbacks=(*callbacks, HoldZeros()))
        return tuned.eval()


def accuracy(network: Callable[[Tensor], Tensor], count: int) -> float:
    """Share of the first `count` test pictures that are classified right."""
    data = pictures("test").subset(slice(count))
    with torch.no_grad():
        guesses = torch.cat([network(batch).argmax(dim=1) for batch in inputs_of(data).split(500)])
    return float((guesses == data.labels).double().mean())


def dense(name: str, folder: Path, share: float = 1.0) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network of that name in evaluation mode, and the record of its training.

    It is trained once, goes on where it was stopped, and is read from `folder` from then on.

    Args:
        name: of `KINDS`.
        folder: holds one file a network.
        share: of its epochs.
    """
    path = folder / f"{name}.safetensors"
    kind = KINDS[name]
    steps = max(1, round(share * kind.epochs * len(pictures("train")) / BATCH))
    with seeded(0, torch.device("cpu")):
        network = kind.build()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".ckpt")
        module = Classifier(network, kind.rate, steps, flip=True)
        record = fit(module, Shuffled(60_000, BATCH), steps=steps, checkpoint=unfinished, resume=True)
        FORMAT.save(path, network.state_dict(), {"network": name, "steps": steps, "seconds": record.seconds})
        unfinished.unlink()

    def check(header: dict[str, Any]) -> None:
        if header.get("network") != name or header.get("steps") != steps:
            raise ValueError(f"holds another training than {steps} steps of the {name}; delete it to train anew")

    def restore(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        network.load_state_dict(tensors)
        return {"training_steps": header["steps"], "training_seconds": header["seconds"]}

    return network.eval(), FORMAT.load(path, check, restore)


@dataclass(frozen=True)
class Labels:
    """The cross-entropy of training pictures, batch by batch: the calibration of criteria that need a loss.

    Args:
        count: of pictures.
        batch: pictures in a batch.
        seed: which pictures.
        temperature: logits are divided by it.
    """

    count: int
    batch: int
    seed: int
    temperature: float = 1.0

    def losses(self, target: Any) -> Iterator[Tensor]:
        data = self.data()
        for inputs, labels in zip(inputs_of(data).split(self.batch), data.labels.split(self.batch), strict=True):
            yield F.cross_entropy(target(inputs) / self.temperature, labels)

    def outputs(self, target: Any) -> Tensor:
        """(count, 10) logits."""
        return torch.cat([target(inputs) for inputs in inputs_of(self.data()).split(self.batch)])

    def data(self) -> Labelled:
        """The pictures, none of which the judge sees."""
        return pictures("train").subset(Shuffled(60_000, self.count, self.seed).batch_at(0))
