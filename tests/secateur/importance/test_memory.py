"""Scoring streams over the parameters: beside the network and the scores it holds two copies of them at most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import maths, selection
from secateur.granularity import Weights
from secateur.importance import (
    Fisher,
    GraSP,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    Lamp,
    Magnitude,
    MaskHessian,
    MaskTaylor,
    SynFlow,
    Taylor,
    Wanda,
)
from secateur.importance import magnitude as magnitude_file
from secateur.metrics.memory import measure_peak_memory
from secateur.surgery import trace
from secateur.units import Criterion
from tests.secateur.toys import generator

INPUTS, WIDTH = 64, 160

# The most copies of the parameters beside the network and the scores, of which a layer is a sixth; and a little room.
ELEMENTWISE: dict[str, tuple[Criterion, float]] = {
    "magnitude": (Magnitude(2.0), 0.2),
    "LAMP": (Lamp(), 0.45),
    "Taylor": (Taylor(), 0.4),
    "SNIP": (Taylor("elements"), 0.4),
    "Fisher": (Fisher(), 0.4),
    "Hessian diagonal": (HessianDiagonal(2), 0.65),
    "Hessian diagonal, absolute": (HessianDiagonal(2, absolute=True), 1.65),
    "Hessian diagonal, differences": (HessianDiagonal(1, method="central_differences"), 1.65),
    "Hessian product": (HessianProduct(), 0.4),
    "Hessian product, differences": (HessianProduct("central_differences"), 1.4),
    "Hessian trace": (HessianTrace(HessianDiagonal(2)), 0.65),
    "GraSP": (GraSP(), 1.4),
    "GraSP, differences": (GraSP("central_differences"), 1.4),
    "SynFlow, one round": (SynFlow((1, INPUTS), 0.5, 1), 0.9),
    "SynFlow": (SynFlow((1, INPUTS), 0.5, 3), 1.85),
    "Wanda": (Wanda(), 1.25),
    "Taylor of second order": (Taylor(second=HessianProduct()), 1.4),
    "Taylor with a probed diagonal": (Taylor(second=HessianDiagonal(1)), 1.4),
}
CHANNELS = ELEMENTWISE | {
    "Group Fisher": (MaskTaylor("square"), 1.05),
    "mask Hessian": (MaskHessian(2), 1.85),
    "elements with a probed diagonal": (Taylor("elements", second=HessianDiagonal(1)), 1.65),
}
CASES = [
    pytest.param(units, criterion, most, id=f"{units}: {name}")
    for units, cases in (("weights", ELEMENTWISE), ("channels", CHANNELS))
    for name, (criterion, most) in cases.items()
]


@dataclass(frozen=True)
class Batches:
    """The cross-entropy of batches of noise: two, so that what is kept from one to the next counts."""

    def losses(self, target: Any) -> Iterator[Tensor]:
        for seed in (0, 1):
            inputs = torch.randn(2, INPUTS, generator=generator(seed))
            yield functional.cross_entropy(target(inputs), torch.tensor([0, 1]))


def network() -> nn.Sequential:
    """Six layers of one width, so that no layer has much more than a sixth of the parameters."""
    widths = [INPUTS, *[WIDTH] * 7, 4]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.utils.skip_init(nn.Linear, inputs, outputs), nn.ReLU()]
    with torch.no_grad():
        for parameter in (module := nn.Sequential(*layers[:-1])).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(parameter.numel())) / 12)
    return module.eval()


@pytest.mark.parametrize(("units", "criterion", "most"), CASES)
def test_scoring_holds_few_copies(
    units: str, criterion: Criterion, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pieces and histograms of fixed sizes, which are nothing beside a large network.
    monkeypatch.setattr(selection, "_CHUNK", 1 << 10)
    monkeypatch.setattr(selection, "_DIGIT", 8)
    monkeypatch.setattr(maths, "_PIECE", 1 << 10)
    monkeypatch.setattr(magnitude_file, "_PIECE", 1 << 10)
    module = network()
    target = Weights(module) if units == "weights" else trace(module, torch.zeros(1, INPUTS), check=False)
    target.groups(), target.tensors()
    found: dict[str, Tensor] = {}
    peak = measure_peak_memory(lambda: found.update(criterion.score(target, Batches())), torch.device("cpu")).bytes
    answer = sum(score.numel() * score.element_size() for score in found.values())
    copies = (peak - answer) / sum(4 * parameter.numel() for parameter in module.parameters())
    assert copies <= most
