"""Train a demo vision transformer: python scripts/train_demo_vit.py fashion

Writes a folder of transformers with a card into the package (or --output): "fashion" is the model that comes with it,
"marked" and "segmentation" are for the harder tasks on canvases of several pieces of clothing, "digits" is done in
seconds. Ctrl-C stops after the step; the same command goes on from the checkpoint, and, once training has ended,
measures and writes anew. Needs Fashion-MNIST, except for the digits.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from secateur.console import progress_bar
from secateur.datasets import Labelled, digits
from secateur.datasets.fashion_mnist import CLASSES
from secateur.files import replacing_file
from secateur.metrics.features import fashion_features
from secateur.metrics.features.classifier import SmallClassifier
from secateur.recovery.distill import SoftTargets
from secateur.surgery.cost import count_params
from secateur.training import FitRecord
from secateur.training.seeding import seeded
from vit.augmentation import Augmentation
from vit.data import LabelledImages, split
from vit.demo import MODELS, fashion_splits, networks
from vit.demo.cards import Card
from vit.images import PREPROCESSOR
from vit.tasks.canvases import BACKGROUND, FASHION, Layout, marked_things, things_everywhere
from vit.tasks.classification import Classification, ClassificationScore
from vit.tasks.segmentation import Segmentation, SegmentationScore
from vit.tasks.task import Score, Task
from vit.train import FineTune, recover

Splits = tuple[LabelledImages, LabelledImages, LabelledImages]
"""(to train on, to choose with, to judge by)."""

TEACHER = 0.5
"""Share of the teacher in the loss; the rest is the labels'."""

QUICK_STEPS, QUICK_BATCH, QUICK_PICTURES = 4, 16, 128


@dataclass(frozen=True)
class Job:
    """How one model is trained; `splits` has at most so many pictures in each part."""

    name: str
    build: Callable[[], Any]
    splits: Callable[[int | None], Splits]
    task: Task
    about: str
    data: str
    options: FineTune
    teacher: Callable[[], nn.Module] | None = None


class FashionTeacher(nn.Module):
    """The classifier that comes with the core, for pixel values in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier: SmallClassifier = fashion_features().network

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier((pixel_values + 1) / 2)


def fashion_pictures(most: int | None) -> Splits:
    training, validation, judging = (part.subset(slice(most)) for part in fashion_splits())
    return training, validation, judging


def digit_pictures(most: int | None) -> Splits:
    training, rest = split(LabelledImages.of(digits()), 600)
    return training.subset(slice(most)), rest.subset(slice(0, 150)), rest.subset(slice(150, None))


def canvases(compose: Callable[[Labelled, int, Layout, int], LabelledImages], most: int | None) -> Splits:
    """Canvases of pictures that only training, choosing and judging have."""
    made = []
    for seed, (part, count) in enumerate(zip(fashion_splits(), (40000, 2000, 4000), strict=True)):
        things = Labelled(part.images[:, 0], part.labels, part.classes)
        made.append(compose(things, min(count, most or count), FASHION, seed))
    return made[0], made[1], made[2]


CANVASES = (
    "Data: canvases of Fashion-MNIST's pictures (Xiao, Rasul and Vollgraf 2017, MIT licence) by `vit.tasks.canvases`: "
    "40,000 to train on, 2,000 to choose the best weights with."
)


JOBS: Sequence[Job] = (
    Job(
        "fashion-vit",
        networks.fashion_vit,
        fashion_pictures,
        Classification(),
        "A vision transformer (`ViTForImageClassification`) that says which of ten pieces of clothing a grey picture "
        "of 28x28 pixels shows, from 49 patches of 4x4 and a class token.",
        "Data: Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, MIT licence): 55,000 of its training pictures to train "
        "on, the other 5,000 to choose the best weights with.",
        FineTune(
            steps=13750,
            batch_size=64,
            rate=1e-3,
            warmup=700,
            ema=0.999,
            validate_every=860,
            augmentation=Augmentation(shift=1),
        ),
        teacher=FashionTeacher,
    ),
    Job(
        "digits-vit",
        networks.digits_vit,
        digit_pictures,
        Classification(),
        "A vision transformer (`ViTForImageClassification`) that reads handwritten digits of 8x8 pixels.",
        "Data: scikit-learn's digits, 1,197 to train on, 150 to choose the best weights with.",
        FineTune(steps=800, batch_size=32, rate=2e-3, warmup=80, ema=0.99, validate_every=100),
    ),
    Job(
        "marked-vit",
        partial(networks.canvas_vit, FASHION.size, 4, CLASSES),
        partial(canvases, marked_things),
        Classification(),
        "A vision transformer (`ViTForImageClassification`) that says which piece of clothing is framed, of two to "
        "four on a canvas of 56x56 pixels: 196 patches of 4x4 and a class token.",
        CANVASES,
        FineTune(steps=6000, batch_size=64, rate=1e-3, warmup=300, ema=0.999, validate_every=500),
    ),
    Job(
        "segmentation-vit",
        partial(networks.canvas_segmenter, FASHION.size, 4, (BACKGROUND, *CLASSES)),
        partial(canvases, things_everywhere),
        Segmentation(),
        "A vision transformer (`ViTForPatchSegmentation`) that says what piece of clothing each pixel of a canvas of "
        "56x56 pixels shows, if any.",
        CANVASES,
        FineTune(steps=4000, batch_size=64, rate=1e-3, warmup=200, ema=0.999, validate_every=500),
    ),
)


def teaching(job: Job) -> dict[str, Any]:
    """What `recover` is told of the teacher."""
    if job.teacher is None:
        return {}
    term = SoftTargets(weight=TEACHER, temperature=2.0, dim=1)
    return {"teacher": job.teacher(), "terms": (term,), "task_weight": 1 - TEACHER}


def train(job: Job, network: nn.Module, splits: Splits, checkpoint: Path) -> FitRecord:
    """The best averaged weights end up in `network`."""
    training, validation, _ = splits
    with progress_bar() as report:
        return recover(
            network,
            job.task,
            training,
            job.options,
            held_out=validation,
            checkpoint=checkpoint,
            report=report,
            **teaching(job),
        )


def seconds_per_step(job: Job, network: nn.Module, splits: Splits, most: int = 10) -> float:
    """Of processor time, on as many threads as torch has."""
    steps = min(most, job.options.steps)
    options = replace(job.options, steps=steps, warmup=0, validate_every=None)
    start = time.process_time()
    recover(copy.deepcopy(network), job.task, splits[0], options, **teaching(job))
    return (time.process_time() - start) / steps


def how(job: Job, pictures: int, record: FitRecord, seconds: float) -> str:
    """A paragraph on the training."""
    options = job.options
    epochs = options.steps * options.batch_size / pictures
    sentences = [
        f"Training: {options.steps:,} steps of {options.batch_size} pictures ({epochs:.1f} epochs) by "
        f"`scripts/train_demo_vit.py`, {seconds * options.steps / 60:.0f} minutes of one CPU thread "
        f"({record.seconds / 60:.0f} by the clock, beside other work).",
        f"AdamW at {options.rate:g} with a cosine decay after {options.warmup} steps of warm-up, weight decay "
        f"{options.weight_decay:g}, gradients clipped at {options.clip_norm:g}, averaged weights (decay "
        f"{options.ema:g}).",
    ]
    if options.augmentation.shift:
        sentences.append(f"Pictures are shifted by up to {options.augmentation.shift} pixel.")
    if job.teacher is not None:
        sentences.append(
            "Half of the loss is cross-entropy with the labels, half what the core's fashion-cnn (90.5 % on the test "
            "pictures) says of the same picture, at temperature 2; it was trained on all 60,000 training pictures."
        )
    best = max(score for _, score in record.validations)
    sentences.append(
        f"The best {job.task.score_name} on the pictures to choose with was {best:.2%}, at step {record.best_step:,}."
    )
    return " ".join(sentences)


def rows(score: Score) -> Mapping[str, str]:
    """What the card's table says."""
    if isinstance(score, ClassificationScore):
        return {
            "top-1 accuracy": f"{score.top1:.2%}",
            "top-5 accuracy": f"{score.top5:.2%}",
            "cross-entropy": f"{score.loss:.3f}",
            "expected calibration error": f"{score.calibration_error:.2%}",
        }
    assert isinstance(score, SegmentationScore)
    return {
        "mean IoU": f"{score.mean_iou:.2%}",
        "pixel accuracy": f"{score.pixel_accuracy:.2%}",
        "cross-entropy": f"{score.loss:.3f}",
    }


def example(job: Job, network: nn.Module) -> str:
    """Python that loads and asks the model."""
    if job.name == "fashion-vit":
        loading = "from vit.demo import fashion_splits, fashion_vit\n\nnetwork = fashion_vit()"
        return f"{loading}\nlogits = network(fashion_splits()[2].pixel_values(slice(8))).logits"
    source = "transformers" if type(network).__module__.startswith("transformers.") else type(network).__module__
    name = type(network).__name__
    return f'from {source} import {name}\n\nnetwork = {name}.from_pretrained("{job.name}")  # pixels in [-1, 1]'


def preparation(size: int) -> dict[str, Any]:
    """How grey images become what the model was trained on, in the words of transformers."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": int(Image.Resampling.BILINEAR),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5],
        "image_std": [0.5],
    }


def main(options: argparse.Namespace) -> None:
    job = next(job for job in JOBS if job.name == f"{options.model}-vit")
    work, output = options.work, options.output or MODELS
    if options.quick:
        job = replace(job, options=replace(job.options, steps=QUICK_STEPS, batch_size=QUICK_BATCH))
        work, output = work / "quick", options.output or work / "quick"
    with seeded(0, torch.device("cpu")):
        network = job.build()
    splits = job.splits(QUICK_PICTURES if options.quick else None)
    record = train(job, network, splits, work / f"{job.name}.ckpt")
    folder = output / job.name
    network.save_pretrained(folder)
    with replacing_file(folder / PREPROCESSOR) as temporary:
        temporary.write_text(json.dumps(preparation(network.config.image_size), indent=2) + "\n", encoding="utf-8")
    card = Card(
        job.name,
        job.about,
        job.data,
        example(job, network),
        count_params(network),
        how(job, len(splits[0]), record, seconds_per_step(job, network, splits)),
        len(splits[2]),
        rows(job.task.measure(network, splits[2])),
    )
    with replacing_file(folder / "README.md") as temporary:
        temporary.write_text(card.text(), encoding="utf-8")
    print(card.text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[job.name.removesuffix("-vit") for job in JOBS])
    parser.add_argument("--quick", action="store_true", help="a few steps on a few pictures, to see that it runs")
    parser.add_argument("--work", type=Path, default=Path("out/demo"), help="folder of checkpoints")
    parser.add_argument("--output", type=Path, help="folder that gets a folder of the model's name")
    main(parser.parse_args())
