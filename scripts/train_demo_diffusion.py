"""Train a demo diffusion model: python scripts/train_demo_diffusion.py digits-dit

Trains with v-prediction and averaged weights, measures the samples, and writes a diffusers folder in float16, with a
card, into the package. Ctrl-C stops after the step; the same command goes on from the checkpoint, and, once training
has ended, measures and writes anew. Needs scikit-learn (digits) or Fashion-MNIST, and a sentence encoder for prompts.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from diffusion.conditions import ClassLabels, ClassPrompts, Conditions, LatentBatches
from diffusion.demo import MODELS, cards, networks
from diffusion.demo.cards import Card, Row
from diffusion.demo.prompts import plain_prompts, training_prompts, unseen_prompts
from diffusion.evaluate import EvaluatedModel, evaluate
from diffusion.noising import Noising
from diffusion.pipeline import ClassToImage, TextToImage
from diffusion.sampling import PipelineSource, Sampling
from diffusion.text import sentence_encoder
from diffusion.train import DenoisingTask, DiffusionTraining
from secateur.console import progress_bar, silent
from secateur.datasets import Labelled, digits, fashion_mnist
from secateur.metrics.distribution import DistributionJudge
from secateur.metrics.features import ClassifierFeatures, digit_features, fashion_features, unseen_digits
from secateur.training import cosine, fit
from secateur.training.seeding import seeded

Pipeline = ClassToImage | TextToImage


@dataclass(frozen=True)
class Data:
    """What a model learns from, and what judges it."""

    training: Callable[[], Labelled]
    unseen: Callable[[], Labelled]
    features: Callable[[], ClassifierFeatures]
    samples: int
    source: str


@dataclass(frozen=True)
class Job:
    """How one model is trained."""

    name: str
    build: Callable[[], Any]
    pipeline: Callable[[Any], Pipeline]
    data: Data
    about: str
    steps: int
    batch_size: int
    ema: float
    rate: float = 1e-3
    warmup: int = 100


DIGITS = Data(digits, unseen_digits, digit_features, 400, cards.DIGITS)
FASHION = Data(lambda: fashion_mnist("train"), lambda: fashion_mnist("test"), fashion_features, 1000, cards.FASHION)


def of_transformer(network: Any) -> Pipeline:
    return ClassToImage(networks.scheduler(), transformer=network)


def of_unet(network: Any) -> Pipeline:
    return ClassToImage(networks.scheduler(), unet=network)


def of_prompts(network: Any) -> Pipeline:
    return TextToImage(network, networks.scheduler())


JOBS = (
    Job(
        "digits-dit",
        networks.digits_dit,
        of_transformer,
        DIGITS,
        "A diffusion transformer (`DiTTransformer2DModel`) that draws handwritten digits of 8x8 pixels by class.",
        steps=3000,
        batch_size=64,
        ema=0.998,
    ),
    Job(
        "digits-unet",
        networks.digits_unet,
        of_unet,
        DIGITS,
        "A UNet (`UNet2DModel`) that draws handwritten digits of 8x8 pixels by class.",
        steps=3000,
        batch_size=64,
        ema=0.998,
    ),
    Job(
        "fashion-unet",
        networks.fashion_unet,
        of_prompts,
        FASHION,
        "A UNet (`UNet2DConditionModel`) that draws clothes of 28x28 pixels from prompts.",
        steps=2400,
        batch_size=64,
        ema=0.999,
    ),
    Job(
        "fashion-dit",
        networks.fashion_dit,
        of_transformer,
        FASHION,
        "A diffusion transformer (`DiTTransformer2DModel`) that draws clothes of 28x28 pixels by class.",
        steps=3600,
        batch_size=128,
        ema=0.999,
    ),
)


def conditions(job: Job, data: Labelled) -> Conditions:
    """Classes, or prompts encoded once; a tenth of the samples has none."""
    if job.pipeline is not of_prompts:
        return ClassLabels(data.labels, null=len(data.classes))
    texts = [training_prompts(name) for name in data.classes]
    states = sentence_encoder()(["", *(prompt for of_class in texts for prompt in of_class)]).states
    rows = torch.arange(1, len(states)).split([len(of_class) for of_class in texts])
    return ClassPrompts(data.labels, states, rows, null=0)


def train(job: Job, network: Any, steps: int, checkpoint: Path) -> float:
    """The averaged weights end up in `network`; returns the seconds that one thread needs a step."""
    data = job.data.training()
    batches = LatentBatches(data.pixels(-1, 1), conditions(job, data), job.batch_size)
    task = DenoisingTask(Noising.of(networks.scheduler()))
    factor = cosine(min(job.warmup, steps // 2), steps)
    with progress_bar() as report:
        fit(
            DiffusionTraining(network, task, rate=job.rate, schedule=factor),
            batches,
            steps=steps,
            ema=job.ema,
            clip_norm=1.0,
            checkpoint=checkpoint,
            resume=True,
            identity={"model": job.name, "batch_size": job.batch_size, "rate": job.rate},
            report=report,
        )
    start, timed = time.process_time(), 5
    fit(DiffusionTraining(copy.deepcopy(network), task), batches, steps=timed, ema=job.ema, report=silent)
    return (time.process_time() - start) / timed


def measure(job: Job, pipeline: Pipeline, shipped: Pipeline) -> tuple[list[Row], float]:
    """The rows of the card, and the mean squared error of float16's latents over the latents' mean square."""
    unseen = job.data.unseen()
    halves = unseen.pixels()[0::2], unseen.pixels()[1::2]
    features = job.data.features()
    judge = DistributionJudge.of(features, *halves)
    labels = [sample % len(unseen.classes) for sample in range(job.data.samples)]
    error = 0.0

    def row(what: str, asked: Sequence[Any], guidance: float, steps: int = 20) -> Row:
        nonlocal error
        of_seed = {seed: asked[label] for seed, label in enumerate(labels)}
        sampling = Sampling(
            PipelineSource(pipeline, of_seed, steps, guidance), tuple(of_seed), tuple(labels), batch_size=50
        )
        others = {} if error else {"float16": shipped.network}
        record, _ = evaluate(pipeline.network, others, sampling, judges=[judge], classifier=features, shown=0)
        made: list[EvaluatedModel] = [record.reference, *record.candidates]
        for candidate in record.candidates:
            assert candidate.paired is not None
            error = candidate.paired.relative_latent_error
        (distances,), accuracy = made[-1].distances, made[-1].accuracy
        assert accuracy is not None and distances.floor is not None
        return Row(what, steps, guidance, accuracy.mean, distances.name, distances.frechet, distances.floor)

    if job.pipeline is not of_prompts:
        classes = list(range(len(unseen.classes)))
        rows = [row("classes", classes, 1.0), row("classes", classes, 1.0, 10), row("classes", classes, 2.0)]
    else:
        plain, new = plain_prompts(unseen.classes), unseen_prompts(unseen.classes)
        rows = [row("prompts", plain, 1.0), row("prompts", plain, 1.0, 10), row("prompts", plain, 2.0)]
        rows.append(row("prompts with words that training never saw", new, 2.0))
    return rows, error


def grid(pipeline: Pipeline, names: Sequence[str], each: int = 10) -> Image.Image:
    """A row a class, on the seeds from 0."""
    asked: Sequence[Any] = plain_prompts(names) if isinstance(pipeline, TextToImage) else range(len(names))
    of_rows = [one for one in asked for _ in range(each)]
    images = pipeline(of_rows, num_inference_steps=20, output_type="pt")
    assert isinstance(images, torch.Tensor)
    images = functional.pad(images, (1, 1, 1, 1), value=0.3)
    height, width = images.shape[-2:]
    sheet = images.reshape(len(names), each, height, width).transpose(1, 2).reshape(len(names) * height, each * width)
    picture = Image.fromarray((sheet * 255).round().to(torch.uint8).numpy())
    scale = max(1, 500 // picture.width)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def main(options: argparse.Namespace) -> None:
    job = next(job for job in JOBS if job.name == options.model)
    steps = job.steps if options.steps is None else options.steps
    with seeded(0, torch.device("cpu")):
        network = job.build()
    # In evaluation mode: in training mode DiT drops labels of its own, in each block others.
    network.eval()
    seconds = train(job, network, steps, options.work / f"{job.name}.ckpt")

    folder = options.output / job.name
    job.pipeline(copy.deepcopy(network).half()).save_pretrained(folder)
    pipeline, shipped = job.pipeline(network), job.pipeline(copy.deepcopy(network).half().float())
    rows, error = measure(job, pipeline, shipped)
    by_prompt = job.pipeline is of_prompts
    card = Card(
        job.name,
        job.about,
        (*([cards.PROMPTS] if by_prompt else []), job.data.source),
        '["a photo of an ankle boot", "a bag"]' if by_prompt else "[3, 8]",
        sum(parameter.numel() for parameter in network.parameters()),
        steps,
        job.batch_size,
        job.ema,
        seconds * steps / 60,
        job.data.samples,
        tuple(rows),
        error,
    )
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
    grid(shipped, job.data.unseen().classes).save(folder / "samples.png", optimize=True)
    print(card.text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[job.name for job in JOBS])
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--work", type=Path, default=Path("out/demo"), help="folder of checkpoints")
    parser.add_argument("--output", type=Path, default=MODELS, help="folder that gets a folder of the model's name")
    main(parser.parse_args())
