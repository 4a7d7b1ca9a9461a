"""Train a demo diffusion model: python scripts/train_demo_diffusion.py digits-dit

Trains with v-prediction and averaged weights, writes a diffusers folder (float16) with its card into the package, and a
grid of samples beside the checkpoint. Ctrl-C stops after the step; the same command goes on from the checkpoint, and,
once training has ended, measures and writes anew. Needs scikit-learn (digits) or Fashion-MNIST.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion.conditions import ClassLabels, ClassPrompts, Conditions, LatentBatches
from diffusion.demo import MODELS, networks
from diffusion.demo.prompts import training_prompts
from diffusion.noising import Noising
from diffusion.pipeline import ClassToImage, TextToImage
from diffusion.text import sentence_encoder
from diffusion.train import DenoisingTask, DiffusionTraining
from secateur.console import progress_bar
from secateur.datasets import Labelled, digits, fashion_mnist
from secateur.training import FitRecord, cosine, fit
from secateur.training.seeding import seeded


@dataclass(frozen=True)
class Job:
    """How one model is trained."""

    name: str
    build: Callable[[], nn.Module]
    pipeline: Callable[[nn.Module], ClassToImage | TextToImage]
    data: str
    about: str
    steps: int
    batch_size: int
    ema: float
    rate: float = 1e-3
    warmup: int = 100

    @property
    def by_prompt(self) -> bool:
        return self.name == "fashion-unet"

    def training_data(self) -> Labelled:
        return digits() if self.data == "digits" else fashion_mnist("train")


JOBS = (
    Job(
        "digits-dit",
        networks.digits_dit,
        lambda network: ClassToImage(networks.scheduler(), transformer=network),
        "digits",
        "A diffusion transformer (`DiTTransformer2DModel`) that draws handwritten digits of 8x8 pixels by class.",
        steps=3000,
        batch_size=64,
        ema=0.998,
    ),
    Job(
        "digits-unet",
        networks.digits_unet,
        lambda network: ClassToImage(networks.scheduler(), unet=network),
        "digits",
        "A UNet (`UNet2DModel`) that draws handwritten digits of 8x8 pixels by class.",
        steps=3000,
        batch_size=64,
        ema=0.998,
    ),
    Job(
        "fashion-unet",
        networks.fashion_unet,
        lambda network: TextToImage(network, networks.scheduler()),
        "fashion",
        "A UNet (`UNet2DConditionModel`) that draws clothes of 28x28 pixels from prompts.",
        steps=2400,
        batch_size=64,
        ema=0.999,
    ),
    Job(
        "fashion-dit",
        networks.fashion_dit,
        lambda network: ClassToImage(networks.scheduler(), transformer=network),
        "fashion",
        "A diffusion transformer (`DiTTransformer2DModel`) that draws clothes of 28x28 pixels by class.",
        steps=3600,
        batch_size=128,
        ema=0.999,
    ),
)


def conditions(job: Job, data: Labelled) -> Conditions:
    """Classes, or prompts encoded once; a tenth of the samples has none."""
    if not job.by_prompt:
        return ClassLabels(data.labels, null=len(data.classes))
    texts = [training_prompts(name) for name in data.classes]
    states = sentence_encoder()(["", *(prompt for of_class in texts for prompt in of_class)]).states
    rows = torch.arange(1, len(states)).split([len(of_class) for of_class in texts])
    return ClassPrompts(data.labels, states, rows, null=0)


def train(job: Job, network: nn.Module, steps: int, checkpoint: Path) -> FitRecord:
    """The averaged weights end up in `network`."""
    data = job.training_data()
    batches = LatentBatches(data.pixels(-1, 1), conditions(job, data), job.batch_size)
    module = DiffusionTraining(
        network,
        DenoisingTask(Noising.of(networks.scheduler())),
        rate=job.rate,
        schedule=cosine(min(job.warmup, steps // 2), steps),
    )
    with progress_bar() as report:
        return fit(
            module,
            batches,
            steps=steps,
            ema=job.ema,
            clip_norm=1.0,
            checkpoint=checkpoint,
            resume=True,
            identity={"model": job.name, "batch_size": job.batch_size, "rate": job.rate},
            report=report,
        )


def main(options: argparse.Namespace) -> dict[str, Any]:
    job = next(job for job in JOBS if job.name == options.model)
    steps = job.steps if options.steps is None else options.steps
    with seeded(0, torch.device("cpu")):
        network = job.build()
    # In evaluation mode: in training mode DiT would drop labels of its own, in each block another's.
    record = train(job, network.eval(), steps, options.work / f"{job.name}.ckpt")
    print(f"trained for {record.steps} steps in {record.seconds:.0f} s; last losses {record.losses[-3:]}", flush=True)

    folder = options.output / job.name
    job.pipeline(network.half()).save_pretrained(folder)
    float32 = job.pipeline(network.float())
    del float32
    return {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=[job.name for job in JOBS])
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--work", type=Path, default=Path("out/demo"), help="folder of checkpoints and grids")
    parser.add_argument("--output", type=Path, default=MODELS, help="folder that gets a folder of the model's name")
    print(json.dumps(main(parser.parse_args()), indent=2))
