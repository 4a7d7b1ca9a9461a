"""Train the small classifiers whose features stand in for Inception: python scripts/train_demo_features.py fashion

Writes the classifier into the package (or --output) and prints its card as JSON: data, steps, seconds, accuracy on
images that it has not seen. About ten minutes for Fashion-MNIST and half a minute for the digits on one CPU thread.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from secateur.console import progress_bar
from secateur.datasets import Labelled, fashion_mnist
from secateur.metrics.features.classifier import ClassifierFeatures, SmallClassifier
from secateur.metrics.features.demo import DIGITS, FASHION, WEIGHTS, seen_digits, unseen_digits
from secateur.training import Shuffled, cosine, fit, generator_at


@dataclass(frozen=True)
class Plan:
    name: str
    data: str
    widths: tuple[int, ...]
    strides: tuple[int, ...]
    steps: int
    batch_size: int
    rate: float
    jitter: float


PLANS = {
    "fashion": Plan(
        FASHION, "the 60,000 training images of Fashion-MNIST", (24, 48, 64, 64), (1, 2, 2, 1), 3000, 128, 4e-3, 0.1
    ),
    "digits": Plan(DIGITS, "the 899 scikit-learn digits at even places", (32, 64, 64), (1, 2, 1), 1500, 128, 4e-3, 0.1),
}


class Training(lightning.LightningModule):
    """Cross-entropy on images that are moved a little."""

    def __init__(self, network: SmallClassifier, images: Labelled, plan: Plan, seed: int) -> None:
        super().__init__()
        self.network, self.plan, self.seed = network, plan, seed
        self.pixels, self.labels = images.pixels(), images.labels

    def training_step(self, batch: Tensor, step: int) -> Tensor:
        images = jittered(self.pixels[batch], self.plan.jitter, generator_at(self.seed, step))
        return cross_entropy(self.network(images), self.labels[batch])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.plan.rate, weight_decay=0.02)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(self.plan.steps // 20, self.plan.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def jittered(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image turned, sheared and scaled by up to a share, and shifted by up to a pixel."""
    moves = torch.rand(len(images), 2, 3, generator=generator) * 2 - 1
    reach = torch.tensor([share, share, 2 / images.shape[-1]])
    grid = affine_grid(torch.eye(2, 3) + moves * reach, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def splits(options: argparse.Namespace) -> tuple[Labelled, Labelled]:
    if options.data == "digits":
        return seen_digits(), unseen_digits()
    return fashion_mnist("train", options.folder), fashion_mnist("test", options.folder)


def main(options: argparse.Namespace) -> dict[str, object]:
    plan, (seen, unseen) = PLANS[options.data], splits(options)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        network = SmallClassifier(seen.images.shape[-1], plan.widths, plan.strides, len(seen.classes))
    module = Training(network, seen, plan, options.seed)
    batches = Shuffled(len(seen), plan.batch_size, options.seed)
    with progress_bar() as report:
        record = fit(module, batches, steps=plan.steps, seed=options.seed, report=report)
    trained = ClassifierFeatures(plan.name, network.requires_grad_(False).eval(), seen.classes, {})
    judged = torch.cat([trained.classify(pixels) for pixels in unseen.pixels().split(500)])
    card: dict[str, object] = {
        "trained_on": plan.data,
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "unseen_images": len(unseen),
        "unseen_accuracy": round(float((judged == unseen.labels).float().mean()), 4),
    }
    path = options.output or WEIGHTS / f"{plan.name}.safetensors"
    size = ClassifierFeatures(plan.name, network, seen.classes, card).save(path)
    return card | {"bytes": size, "seconds": round(record.seconds, 1), "weights_sha256": trained.weights_sha256}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(PLANS))
    parser.add_argument("--folder", type=Path, help="of Fashion-MNIST's files, where Debian's package has not put them")
    parser.add_argument("--output", type=Path, help="file to write instead of the package's own")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(main(parser.parse_args()), indent=2))
