"""Prune a network, let it recover, save and export it: python scripts/prune_network.py out/network --keep 0.5

The network is a small ResNet that is trained on scikit-learn's handwritten digits first; put your own in the place of
`SmallResNet`, and your own data in the place of `digits`. Prints a JSON record: accuracy, parameters, multiply-adds.
"""

import argparse
import json
from pathlib import Path

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from secateur.allocation import Budget
from secateur.console import progress_bar
from secateur.datasets import Labelled, digits
from secateur.importance import Supervised, Taylor
from secateur.recovery.distill import Distillation, SoftTargets
from secateur.surgery import trace
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.exact_budget import allocate_cut
from secateur.surgery.manifest import load, save
from secateur.training import Collated, fit


class SmallResNet(nn.Module):
    """(N, 1, 8, 8) -> (N, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.first = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.second = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x + self.first(x)
        return self.head(x + self.second(x))


class Classifier(lightning.LightningModule):
    """Plain training, for the dense network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: list[Tensor], step: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=2e-3)


def accuracy(module: nn.Module, data: Labelled) -> float:
    with torch.no_grad():
        return float((module.eval()(data.pixels(-1, 1)).argmax(1) == data.labels).double().mean())


def main(options: argparse.Namespace) -> dict[str, object]:
    data = digits()
    held_out = torch.arange(len(data)) % 5 == 0
    train, test = data.subset(torch.nonzero(~held_out)[:, 0]), data.subset(torch.nonzero(held_out)[:, 0])
    images, labels = train.pixels(-1, 1), train.labels
    batches = Collated(TensorDataset(images, labels), batch_size=64)
    torch.manual_seed(0)
    model = SmallResNet()
    with progress_bar() as report:
        fit(Classifier(model), batches, steps=options.train_steps, report=report)

    network = trace(model.eval(), images[:2])
    scores = Taylor().score(network, Supervised([(images[:256], labels[:256])]))
    keep = allocate_cut(network, scores, Budget(share=options.keep, cost="macs"))
    small = network.cut(keep)
    at_once = accuracy(small.module, test)
    example = (images[:2], labels[:2])
    student = Distillation(small.module.train(), model, [SoftTargets()], example, task=functional.cross_entropy)
    with progress_bar() as report:
        fit(student, batches, steps=options.recover_steps, report=report)

    save(small, options.output, dense=model, recipe={"criterion": "Taylor", "share of multiply-adds": options.keep})
    again = load(options.output, SmallResNet).module.eval()
    torch.export.save(torch.export.export(again, (images[:2],)), options.output / "model.pt2")
    return {
        "accuracy": {"dense": accuracy(model, test), "cut": at_once, "recovered": accuracy(again, test)},
        "parameters": {"dense": count_params(model), "cut": count_params(again)},
        "multiply_adds": {"dense": count_macs(model, images[:1]), "cut": count_macs(again, images[:1])},
        "left_out": network.left_out,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the weights, the manifest and the exported program")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the network's multiply-adds, 0 to 1")
    parser.add_argument("--train-steps", type=int, default=400)
    parser.add_argument("--recover-steps", type=int, default=200)
    print(json.dumps(main(parser.parse_args()), indent=2))
