"""Section `dense`: the networks before anything is pruned."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from parts import Job

from networks.models import example
from networks.settings import Settings
from networks.training import accuracy
from secateur.console import Report
from secateur.surgery.cost import count_macs, count_params

HOW = (
    "Trained once on Fashion-MNIST's 60,000 training pictures with AdamW, a cosine, and mirrored pictures. Accuracy is "
    "on the first test pictures, as everywhere here, and on all 10,000. Multiply-adds are those of one picture, "
    "attention's products included; latency is that of 64 pictures."
)


def jobs(settings: Settings) -> dict[str, Job]:
    """One part a network."""
    return {name: partial(_network, name, settings) for name in settings.networks}


def _network(name: str, settings: Settings, report: Report, folder: Path) -> dict[str, Any]:
    report(0.0, f"{name}: training, or reading what was trained")
    kind, network, record = settings.dense(name)
    report(0.9, f"{name}: judging")
    return {
        "how": HOW,
        "units": {group.name: group.size for group in kind.units(network).groups()},
        "params": count_params(network),
        "macs": count_macs(network, example()),
        "test_pictures": settings.test_pictures,
        "accuracy": accuracy(network, settings.test_pictures),
        "accuracy_of_all": accuracy(network, settings.all_pictures),
        **settings.latency(network),
        **record,
    }
