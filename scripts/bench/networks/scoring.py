"""Scoring that is measured in a process of its own; prints a JSON record.

python scripts/bench/networks/scoring.py score channels|weights SCORER PARAMETERS, or peer PARAMETERS.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from jaxtyping import Float
from meters import peak_bytes_above, timed
from torch import Tensor, nn

from secateur.granularity import Weights
from secateur.importance import (
    ActivationAttention,
    Fisher,
    GraSP,
    HessianDiagonal,
    HessianProduct,
    HessianTrace,
    Lamp,
    Magnitude,
    MaskHessian,
    MaskTaylor,
    Product,
    Random,
    RankMixture,
    SynFlow,
    Taylor,
    Wanda,
)
from secateur.surgery import Network, trace
from secateur.surgery.cost import count_bytes, count_params
from secateur.units import Criterion, Scores

INPUTS, OUTPUTS, LAYERS, BATCH, BATCHES = 784, 10, 3, 16, 2

_ANY: dict[str, Criterion] = {
    "random": Random(),
    "magnitude": Magnitude(2.0),
    "LAMP": Lamp(),
    "Taylor": Taylor(),
    "SNIP": Taylor("elements"),
    "Fisher": Fisher(),
    "Hessian diagonal": HessianDiagonal(1),
    "Hessian product": HessianProduct(),
    "GraSP": GraSP(),
    "SynFlow": SynFlow((1, INPUTS), 0.5, 2),
    "Wanda": Wanda(),
}
SCORERS: dict[str, dict[str, Criterion]] = {
    "channels": _ANY
    | {
        "Taylor of second order": Taylor(second=HessianProduct()),
        "Group Fisher": MaskTaylor("square"),
        "Hessian trace": HessianTrace(HessianDiagonal(1)),
        "mask Hessian": MaskHessian(1),
        "activation attention": ActivationAttention(),
        "ranks of magnitude and Taylor": RankMixture((Magnitude(2.0), Taylor("square"))),
        "magnitude times Taylor": Product((Magnitude(2.0), Taylor("square"))),
    },
    "weights": _ANY,
}
"""Kind of units -> scorers by name."""

PEER_HOW = (
    "The plain network of this section. torch-pruning: its graph, and GroupMagnitudeImportance of all its groups; "
    "ours: the trace, without and with its check that masks and cuts agree on the example input (torch-pruning checks "
    "nothing), and Magnitude of all groups. The two take turns; one input."
)


@dataclass(frozen=True)
class Noise:
    """The cross-entropy of batches of noise: of two, so that what is kept from one to the next is there."""

    batches: Float[Tensor, "batches pictures inputs"]

    def losses(self, target: Any) -> Iterator[Tensor]:
        for inputs in self.batches:
            yield F.cross_entropy(target(inputs), torch.arange(len(inputs)) % OUTPUTS)


def plain(parameters: int) -> nn.Sequential:
    """A network of about so many parameters: widths 784, w, w, w, w, 10."""
    linear = INPUTS + OUTPUTS + LAYERS + 1
    width = max(1, round((math.sqrt(linear**2 + 4 * LAYERS * (parameters - OUTPUTS)) - linear) / (2 * LAYERS)))
    layers: list[nn.Module] = [nn.Linear(INPUTS, width), nn.ReLU()]
    for _ in range(LAYERS):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, OUTPUTS)).eval()


def target_of(units: str, network: nn.Sequential) -> Network | Weights:
    """The network's channels or weights."""
    return Weights(network) if units == "weights" else trace(network, torch.randn(1, INPUTS), check=False)


def score(units: str, scorer: str, parameters: int) -> dict[str, Any]:
    """Seconds and memory of one scoring; copies as `networks.cost.HOW` says."""
    criterion = SCORERS[units][scorer]
    calibration = Noise(torch.randn(BATCHES, BATCH, INPUTS, generator=torch.Generator().manual_seed(0)))
    criterion.score(target_of(units, plain(20_000)), calibration)
    network = plain(parameters)
    target = target_of(units, network)
    target.groups()
    target.tensors()
    seconds: list[float] = []
    scores: Scores = {}

    def work() -> None:
        start = time.perf_counter()
        scores.update(criterion.score(target, calibration))
        seconds.append(time.perf_counter() - start)

    above = peak_bytes_above(work)
    held = 4 * count_params(network)
    answer = sum(score.numel() * score.element_size() for score in scores.values()) / held
    facts = {"parameters": count_params(network), "seconds": seconds[0], "peak_bytes_above": above}
    facts["answer_copies"] = answer
    if above is None:
        return facts
    # Scores that lie in pages which the process had already are not above.
    working = max(above / held - answer, 0.0)
    return facts | {"copies": above / held, "working_copies": working, "alive_copies": 1 + above / held}


def peer(parameters: int) -> dict[str, Any]:
    """torch-pruning's graph and importance of all groups, and our trace and scores, in turns."""
    import torch_pruning

    network, example = plain(parameters), torch.randn(1, INPUTS)
    found: dict[str, Any] = {}

    def theirs() -> None:
        graph = torch_pruning.DependencyGraph().build_dependency(network, example)
        importance = torch_pruning.importance.GroupMagnitudeImportance()
        found["torch-pruning"] = [importance(group) for group in graph.get_all_groups(ignored_layers=[network[-1]])]

    def ours(check: bool) -> None:
        found["secateur"] = Magnitude(2.0).score(trace(network, example, check=check))

    work = {
        "torch-pruning": theirs,
        "secateur": lambda: ours(False),
        "secateur, checked": lambda: ours(True),
    }
    for one in work.values():
        one()
    rounds = [{name: timed(one, 1)["minimum_s"] for name, one in work.items()} for _ in range(5)]
    return {
        "parameters": count_params(network),
        "bytes": count_bytes(network),
        "groups": {name: len(groups) for name, groups in found.items()},
        "seconds": {name: min(each[name] for each in rounds) for name in work},
        "rounds": rounds,
    }


def main(job: str, *arguments: str) -> None:
    """Run a job and print its record."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if job == "score":
        units, scorer, parameters = arguments
        record = score(units, scorer, int(parameters))
    elif job == "peer":
        record = peer(int(arguments[0]))
    else:
        raise ValueError(f"job must be score or peer, got {job}")
    print(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
