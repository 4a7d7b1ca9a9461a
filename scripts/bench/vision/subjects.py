"""The networks that are pruned, with the pictures and the task of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from transformers import SwinConfig, SwinForImageClassification

from secateur.console import Report, silent
from secateur.datasets import Labelled
from secateur.datasets.fashion_mnist import CLASSES
from secateur.importance import Supervised
from secateur.tensor_files import TensorFormat
from secateur.training import generator_at
from secateur.training.seeding import seeded
from vision.settings import BATCH, TAUGHT, TERMS, Settings
from vit.augmentation import Augmentation
from vit.data import LabelledImages
from vit.demo import fashion_splits, fashion_vit, networks
from vit.tasks.canvases import BACKGROUND, FASHION, Layout, marked_things, things_everywhere
from vit.tasks.classification import Classification
from vit.tasks.segmentation import Segmentation
from vit.tasks.task import Task, logits_of
from vit.train import FineTune, recover

FORMAT = TensorFormat("network of the bench of vision transformers", 1)
PATCH = 7
"""Side of a patch of a canvas in pixels: a cell has 4 x 4 patches, a canvas 64."""

Splits = tuple[LabelledImages, LabelledImages, LabelledImages]
"""(to train on, to choose with, to judge by)."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A dense network, and what it is for.

    Args:
        network: in evaluation mode; never trained or cut itself.
        task: what it is judged by.
        training: pictures.
        validation: pictures that no row is judged by.
        test: pictures that rows are judged by.
        record: of its training, where the bench trained it.
    """

    network: nn.Module
    task: Task
    training: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    record: Mapping[str, Any]

    def copied(self) -> nn.Module:
        """A network to train."""
        return copy.deepcopy(self.network)

    def batch(self, pictures: int = BATCH) -> Tensor:
        """(pictures, C, H, W) pixel values to measure time with."""
        return self.test.pixel_values(slice(pictures))

    def score(self, network: nn.Module) -> float:
        """Accuracy, or mean intersection over union, on the pictures to judge by."""
        return self.task.measure(network, self.test, 250).primary

    def calibration(self, seed: int, settings: Settings, batch: int = 32) -> list[tuple[Tensor, Tensor]]:
        """Training pictures with labels, which criteria look at: other ones for each seed."""
        order = torch.randperm(len(self.training), generator=generator_at(seed, 0))[: settings.calibration_pictures]
        chosen = self.training.subset(order)
        return list(zip(chosen.pixel_values().split(batch), chosen.labels.split(batch), strict=True))

    def objective(self, seed: int, settings: Settings) -> Supervised:
        """The loss of these pictures."""
        return Supervised(
            self.calibration(seed, settings), lambda output, labels: self.task.loss(logits_of(output), labels)
        )

    def trained(
        self,
        network: nn.Module,
        steps: int,
        seed: int,
        settings: Settings,
        callbacks: Sequence[Callback] = (),
        auxiliary: Callable[[], Tensor] | None = None,
    ) -> nn.Module:
        """The network after the short training that all get: labels, and the dense network's outputs. In place."""
        return self.fine_tuned(network, settings.recovery(steps), seed, callbacks, auxiliary)

    def fine_tuned(
        self,
        network: nn.Module,
        options: FineTune,
        seed: int,
        callbacks: Sequence[Callback] = (),
        auxiliary: Callable[[], Tensor] | None = None,
    ) -> nn.Module:
        """The same with other options."""
        network.requires_grad_(True)
        recover(
            network,
            self.task,
            self.training,
            options,
            teacher=self.copied(),
            terms=TERMS,
            task_weight=1 - TAUGHT,
            callbacks=callbacks,
            auxiliary=auxiliary,
            seed=seed,
        )
        return network.eval()


@dataclass(frozen=True)
class Kind:
    """How a subject is made where it does not come with the package.

    Args:
        build: makes the network, with weights from torch's global generator.
        splits: settings -> its pictures.
        task: what it learns.
        options: how; None: the demo model is read.
    """

    build: Callable[[], Any]
    splits: Callable[[Settings], Splits]
    task: Task
    options: FineTune | None


def _fashion(settings: Settings) -> Splits:
    training, validation, test = fashion_splits()
    test = test.subset(slice(settings.test_pictures))
    return training.subset(slice(settings.most)), validation.subset(slice(settings.most)), test


def _canvases(compose: Callable[[Labelled, int, Layout, int], LabelledImages], settings: Settings) -> Splits:
    """Canvases of pictures that only training, choosing and judging have."""
    made = []
    for seed, (part, count) in enumerate(zip(fashion_splits(), (30000, 1000, 2000), strict=True)):
        things = Labelled(part.images[:, 0], part.labels, part.classes)
        made.append(compose(things, min(count, settings.most or count), FASHION, seed))
    return made[0], made[1], made[2]


def small_swin() -> nn.Module:
    """28x28 pixels in patches of 2x2, two stages of two layers with windows of 7x7, widths 32 and 64."""
    return SwinForImageClassification(
        SwinConfig(
            image_size=28,
            patch_size=2,
            num_channels=1,
            embed_dim=32,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=7,
            mlp_ratio=2.0,
            drop_path_rate=0.0,
            initializer_range=0.05,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: index for index, name in enumerate(CLASSES)},
        )
    )


_LONG = FineTune(steps=3000, batch_size=64, rate=1e-3, warmup=200, ema=0.999, augmentation=Augmentation())
KINDS: Mapping[str, Kind] = {
    "fashion": Kind(networks.fashion_vit, _fashion, Classification(), None),
    "marked": Kind(
        partial(networks.canvas_vit, FASHION.size, PATCH, CLASSES),
        partial(_canvases, marked_things),
        Classification(),
        _LONG,
    ),
    "segmentation": Kind(
        partial(networks.canvas_segmenter, FASHION.size, PATCH, (BACKGROUND, *CLASSES)),
        partial(_canvases, things_everywhere),
        Segmentation(),
        replace(_LONG, steps=2000),
    ),
    "swin": Kind(small_swin, _fashion, Classification(), replace(_LONG, steps=1500, ema=0.99, rate=2e-3)),
}
"""Networks by name: the demo model; two for harder tasks on canvases of several garments; one with windows."""


@lru_cache(maxsize=2)
def subject(name: str, settings: Settings, report: Report = silent) -> Subject:
    """The network of that name, which is trained first where it was not yet; a stopped training goes on.

    Raises:
        FileNotFoundError: the demo model or Fashion-MNIST is absent.
        ValueError: the folder holds another training.
    """
    kind = KINDS[name]
    splits = kind.splits(settings)
    if kind.options is None and not settings.quick:
        return Subject(fashion_vit(), kind.task, *splits, {})
    options = settings.recovery(2) if settings.quick or kind.options is None else kind.options
    network, record = _trained(name, kind, options, splits[0], settings, report)
    return Subject(network, kind.task, *splits, record)


def _trained(
    name: str, kind: Kind, options: FineTune, pictures: LabelledImages, settings: Settings, report: Report
) -> tuple[nn.Module, dict[str, Any]]:
    path = settings.folder / f"{name}.safetensors"
    with seeded(0, torch.device("cpu")):
        network = kind.build()
    if not path.exists():
        settings.folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".ckpt")
        record = recover(network, kind.task, pictures, options, checkpoint=unfinished, report=report)
        FORMAT.save(path, network.state_dict(), {"steps": options.steps, "seconds": record.seconds})
        unfinished.unlink(missing_ok=True)

    def check(header: dict[str, Any]) -> None:
        if header.get("steps") != options.steps:
            raise ValueError(f"holds another training than {options.steps} steps; delete it to train anew")

    def restore(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        network.load_state_dict(tensors)
        return {"training_steps": header["steps"], "training_seconds": header["seconds"]}

    return network.eval(), FORMAT.load(path, check, restore)
