"""The bench of networks: its networks' units are true, its budgets hold, and it goes on where it was stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from secateur.allocation import Budget, allocate
from secateur.importance import Lamp, Magnitude
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.verify import find_miscut
from secateur.training.seeding import seeded

NETWORKS = ("ResNet", "transformer")


def built(bench: Callable[[str], ModuleType], name: str) -> tuple[Any, nn.Module]:
    """A kind of network, and one of it with weights of a fixed seed."""
    kind = bench("networks.models").KINDS[name]
    with seeded(0, torch.device("cpu")):
        return kind, kind.build().eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_units_masked_and_cut_agree(bench: Callable[[str], ModuleType], name: str) -> None:
    kind, network = built(bench, name)
    target = kind.units(network)
    assert find_miscut(target) == {}
    halves = target.cut(allocate(Magnitude(2.0).score(target), target.groups(), Budget(share=0.5)))
    assert count_params(halves.module) < count_params(network)


def test_a_transformer_that_lost_heads_counts_them(bench: Callable[[str], ModuleType]) -> None:
    kind, network = built(bench, "transformer")
    target = kind.units(network)
    keep = {group.name: torch.ones(group.size, dtype=torch.bool) for group in target.groups()}
    keep["blocks.1.attention"][:5] = False
    small = target.cut(keep).module
    assert [block.attention.heads for block in small.blocks] == [8, 3, 8, 8]
    saved = count_macs(network, torch.zeros(1, 1, 28, 28)) - count_macs(small, torch.zeros(1, 1, 28, 28))
    group = next(group for group in target.groups() if group.name == "blocks.1.attention")
    assert saved == pytest.approx(5 * float(group.cost["macs"][0]))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_the_largest_network_within_the_limit(bench: Callable[[str], ModuleType], name: str, share: float) -> None:
    structured, example = bench("networks.structured"), bench("networks.models").example
    kind, network = built(bench, name)
    target = kind.units(network)
    scores = Lamp().score(target)
    whole = count_macs(network, example())

    def cut(part: float) -> Any:
        return target.cut(allocate(scores, target.groups(), Budget(share=part, cost="macs")))

    left = count_macs(structured.within_macs(target, cut, share * whole).module, example())
    assert 0.9 * share * whole < left <= share * whole
    with pytest.raises(ValueError, match="no share leaves at most 10 multiply-adds"):
        structured.within_macs(target, cut, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_pruning_stays_within_the_limit_and_cuts_whole_heads(
    bench: Callable[[str], ModuleType], name: str
) -> None:
    peer, example = bench("networks.peer"), bench("networks.models").example
    _, network = built(bench, name)
    before = copy.deepcopy(network.state_dict())
    whole = count_macs(network, example())
    small = peer.torch_pruned(network, peer.THEIRS["magnitude, global"], None, 0.5 * whole)
    assert 0.4 * whole < count_macs(small, example()) <= 0.5 * whole
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    if name == "transformer":
        assert all(len(block.attention.q.weight) % 8 == 0 for block in small.blocks)
        assert small.embed.weight.shape == network.embed.weight.shape


def test_every_allocation_of_weights_meets_the_share(bench: Callable[[str], ModuleType]) -> None:
    unstructured, models = bench("networks.unstructured"), bench("networks.models")
    _, network = built(bench, "ResNet")
    from secateur.granularity import Weights

    target = Weights(network, params=models.is_weight)
    total = sum(group.size for group in target.groups())
    found = unstructured._kept(target, Magnitude(2.0).score(target), 0.1, "magnitude")
    assert set(found) == {"global", "per layer", "Erdos-Renyi-Kernel"}
    for keep in found.values():
        assert sum(int(mask.sum()) for mask in keep.values()) == int(0.1 * total * (1 + 1e-9))


def test_multiply_adds_of_a_sparse_network_are_those_of_its_weights(bench: Callable[[str], ModuleType]) -> None:
    unstructured, models = bench("networks.unstructured"), bench("networks.models")
    for name in NETWORKS:
        _, network = built(bench, name)
        nonzero = sum(int(value.count_nonzero()) for value in network.parameters())
        assert unstructured._left(network) == {"params": nonzero, "macs": count_macs(network, models.example())}
        with torch.no_grad():
            network.head.weight[:5] = 0
        less = 5 * network.head.in_features
        assert unstructured._left(network)["macs"] == count_macs(network, models.example()) - less


@pytest.mark.parametrize("size", [1_000_000, 10_000_000])
def test_plain_networks_are_of_the_wanted_size(bench: Callable[[str], ModuleType], size: int) -> None:
    with torch.device("meta"):
        assert count_params(bench("networks.scoring").plain(size)) == pytest.approx(size, rel=0.002)


def test_scoring_is_measured_for_every_scorer(bench: Callable[[str], ModuleType]) -> None:
    scoring = bench("networks.scoring")
    for units, scorers in scoring.SCORERS.items():
        for scorer in scorers:
            assert scoring.score(units, scorer, 30_000)["seconds"] > 0
    record = scoring.peer(30_000)
    assert record["groups"] == {"torch-pruning": 4, "secateur": 4}


def test_every_part_is_found(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    criteria = bench("criteria")
    options = criteria.parse(
        ["--only", "dense,cost", "--networks", "ResNet", "--quick", "--output", str(tmp_path / "a")]
    )
    settings = bench("networks.settings").Settings(options.networks, tmp_path, quick=True)
    every = [(part.section, part.name) for part in criteria.BENCH.parts(options, settings)]
    assert ("dense", "ResNet") in every and ("cost", "10,000: weights") in every


def results() -> dict[str, Any]:
    """Figures in the form that the sections give."""

    def rows(level: float) -> list[dict[str, Any]]:
        return [
            {"allocation": "global", "sparsity": s, "seed": seed, "accuracy": level - s, "accuracy_tuned": level}
            for s in (0.5, 0.9)
            for seed in (0, 1)
        ]

    peers = [
        {"sparsity": s, "who": who, "method": "magnitude", "macs": 1e6 * (1 - s), "accuracy_tuned": 0.8}
        for s in (0.5, 0.9)
        for who in ("torch-pruning", "secateur")
    ]
    failed = {"sparsity": 0.99, "who": "torch-pruning", "method": "magnitude", "failed": "more than 1"}
    return {
        "dense": {"ResNet": {"accuracy": 0.9}},
        "structured": {"ResNet: LAMP": {"rows": rows(0.8)}, "ResNet: Wanda": {"rows": rows(0.7)}},
        "peer": {"ResNet: magnitude": {"rows": [*peers, failed]}},
    }


def test_plots_are_drawn_from_the_json_alone(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    drawn = bench("networks.pictures").draw_all(json.loads(json.dumps(results())), tmp_path)
    names = ["criteria_structured.png", "criteria_structured_one_shot.png", "criteria_macs.png"]
    assert [path.name for path in drawn] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


@pytest.mark.slow
def test_orderings_of_the_papers_hold_on_fashion_mnist(bench: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Test accuracy at 80 % zeros, without fine-tuning, of a ResNet that was trained for a twentieth of its epochs."""
    unstructured, training = bench("networks.unstructured"), bench("networks.training")
    settings = bench("networks.settings").Settings(("ResNet",), tmp_path)
    try:
        network, _ = training.dense("ResNet", tmp_path, 0.05)
    except FileNotFoundError as absent:
        pytest.skip(str(absent))
    assert training.accuracy(network, 2000) > 0.75
    accuracy: dict[str, float] = {}
    for method in ("random", "magnitude", "LAMP", "SNIP"):
        entrant = bench("networks.entrants").unstructured(settings)[method]
        for allocation, sparse in unstructured._scored(entrant, method)(network, 0.2, 0).items():
            accuracy[f"{method}, {allocation}"] = training.accuracy(sparse, 2000)
    for method, solve in unstructured.solvers(settings).items():
        accuracy[method] = training.accuracy(solve(network, 0.2, 0), 2000)
    # LAMP (arXiv 2010.07611) over one threshold, that over one share (arXiv 2209.14624), anything over chance.
    assert accuracy["LAMP, global"] > accuracy["magnitude, global"] > accuracy["random, global"]
    assert accuracy["magnitude, global"] > accuracy["magnitude, per layer"]
    # Kernel densities keep small layers (arXiv 1911.11134); gradients tell more than magnitudes (arXiv 1810.02340).
    assert accuracy["magnitude, Erdos-Renyi-Kernel"] > accuracy["magnitude, per layer"]
    assert accuracy["SNIP, global"] > accuracy["magnitude, global"]
    # Weights that are solved for again (arXiv 2301.00774), and from gradients (arXiv 2302.14623).
    assert accuracy["SparseGPT"] > accuracy["magnitude, per layer"]
    assert accuracy["Wanda by rows, refitted"] > accuracy["Wanda by rows"]
    assert accuracy["CHITA"] > accuracy["random, global"]
