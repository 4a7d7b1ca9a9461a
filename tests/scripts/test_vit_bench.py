"""The bench of vision transformers: cuts meet their shares, methods get the same schedules, it goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from secateur.datasets import fashion_mnist
from secateur.surgery.cost import count_macs, count_params
from vit.inputs import example_inputs

Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def settings(bench: Load, tmp_path_factory: pytest.TempPathFactory) -> Any:
    try:
        fashion_mnist("test")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return bench("vision.settings").Settings(tmp_path_factory.mktemp("networks"), quick=True)


def macs(network: Any, of: Any) -> int:
    """Of one picture."""
    return count_macs(network, example_inputs(of.network))


@pytest.mark.parametrize(
    "method", ["random", "LAMP", "Group Fisher, with width", "rate-distortion", "MultiPruner", "SlimSAM"]
)
def test_cuts_meet_their_share(bench: Load, settings: Any, method: str) -> None:
    of = bench("vision.subjects").subject("fashion", settings)
    before = {name: value.clone() for name, value in of.network.state_dict().items()}
    small = bench("vision.entrants").ENTRANTS[method](of, 0.5, 0, settings)
    assert 0.47 * macs(of.network, of) < macs(small, of) <= 0.5 * macs(of.network, of)
    assert count_params(small) < count_params(of.network)
    assert all(torch.equal(value, before[name]) for name, value in of.network.state_dict().items())


@pytest.mark.parametrize("how", ["magnitude, global", "Taylor, one ratio, with width"])
def test_ours_take_no_more_than_the_peers(bench: Load, settings: Any, how: str) -> None:
    of, peer = bench("vision.subjects").subject("fashion", settings), bench("vision.peer")
    way, limit = peer.WAYS[how], 0.6 * macs(of.network, of)
    theirs = peer.torch_pruned(of, way, of.calibration(0, settings), limit)
    found = macs(theirs, of)
    assert found <= limit
    for criterion in way.ours.values():
        ours = bench("vision.entrants").matching(of, criterion, way.kinds, found, 0, settings)
        assert 0.95 * found < macs(ours, of) <= found
    width = theirs.config.hidden_size
    assert (theirs.classifier.in_features < width) is ("with width" in how)


@pytest.mark.parametrize(("name", "speed", "fusion"), [("fashion", 3.0, False), ("segmentation", 1.5, True)])
def test_all_token_methods_have_one_schedule(bench: Load, settings: Any, name: str, speed: float, fusion: bool) -> None:
    of, tokens = bench("vision.subjects").subject(name, settings), bench("vision.tokens")
    schedule, at = tokens.plan(of, speed, fusion)
    for method in tokens.METHODS:
        if fusion and method == "DynamicViT":
            continue
        reduced = tokens.finished(tokens.built(of, method, speed, fusion, 0))
        with torch.no_grad():
            reduced(of.batch(2))
        left = {layer: kept.fewer - 1 for layer, kept in reduced.reduction.reductions.items()}
        assert left == {layer: schedule.patches[layer] for layer in at}, method
    # Schedules count layers outside of the encoder once an image, but a segmenter has its classifier on each patch.
    assert macs(tokens.built(of, "random", speed, fusion, 0), of) <= 1.005 * macs(of.network, of) / speed


def test_long_trainings_have_one_schedule_but_for_what_merging_cannot(bench: Load, settings: Any) -> None:
    of, long = bench("vision.subjects").subject("fashion", settings), bench("vision.long_tokens")
    for method in long.METHOD_NAMES:
        reduced = long.finished(long.built(of, method, 0))
        with torch.no_grad():
            reduced(of.batch(2))
        patches = reduced.reduction.counts(long.PATCHES[0])
        assert reduced.reduction.reductions[4].fewer - 1 == patches[4]
        assert patches == ((49, 31, 16, 8, 4) if method == "ToMe" else long.PATCHES)
        assert macs(reduced, of) < 0.5 * macs(of.network, of)


def test_long_parts_say_how_many_patches_stay_and_how_fast_that_is(bench: Load, settings: Any, tmp_path: Path) -> None:
    long = bench("vision.long_tokens")
    part = long.jobs(settings)["Cropr: 2x, long"](lambda *_: None, tmp_path)
    row = part["rows"][0]
    assert part["patches"] == list(long.PATCHES)
    assert row["steps"] == settings.long_recovery().steps and 0 <= row["accuracy_tuned"] <= 1
    assert row["speedup"] > 0 and row["throughput_of_random"] > 0


def test_long_parts_time_all_methods_at_each_batch(bench: Load, settings: Any, tmp_path: Path) -> None:
    long = bench("vision.long_tokens")
    rows = long.jobs(settings)["speed: 2x, long"](lambda *_: None, tmp_path)["rows"]
    assert [(row["batch"], row["method"]) for row in rows] == [
        (batch, method) for batch in long.SPEED_BATCHES for method in long.METHOD_NAMES
    ]
    assert all(row["speedup"] > 0 and row["throughput_of_random"] > 0 for row in rows)


def test_heads_of_dense_tasks_learn_the_classes_of_patches(bench: Load, settings: Any) -> None:
    of, tokens = bench("vision.subjects").subject("segmentation", settings), bench("vision.tokens")
    reduced = tokens.built(of, "Cropr", 1.5, True, 0)
    losses = tokens.HeadLosses(reduced, partial(tokens.head_loss, of))
    before = [query.clone() for query in reduced.pruner.parameters()]
    of.trained(reduced, 150, 0, settings, [losses], losses)
    assert any(not torch.equal(now, then) for now, then in zip(reduced.pruner.parameters(), before, strict=True))
    assert of.score(tokens.finished(reduced)) >= 0


def test_sparse_weights_have_their_share(bench: Load, settings: Any) -> None:
    of, sparse = bench("vision.subjects").subject("swin", settings), bench("vision.sparse")
    from vit.dimap import linear_weights

    chosen = linear_weights(of.network)
    for name in sparse.WEIGHTS:
        network = sparse.sparse(of, name, 0.7)
        weights = [value for key, value in network.named_parameters() if chosen(key, value)]
        zeros = sum(int((value == 0).sum()) for value in weights)
        total = sum(value.numel() for value in weights)
        assert 0.7 * total <= zeros < 0.7 * total + 20, name


def test_blocks_go_by_movement_too(bench: Load, settings: Any, tmp_path: Path) -> None:
    rows = bench("vision.sparse").block_jobs(settings)["block movement: 50%"](lambda *_: None, tmp_path)["rows"]
    of = bench("vision.subjects").subject("fashion", settings)
    assert 0.4 * macs(of.network, of) < rows[0]["macs"] < 0.6 * macs(of.network, of)
    assert rows[0]["speedup"] > 0 and 0 <= rows[0]["accuracy_tuned"] <= 1


def test_a_network_is_trained_once(bench: Load, settings: Any) -> None:
    subjects = bench("vision.subjects")
    first = subjects.subject("swin", settings)
    subjects.subject.cache_clear()
    again = subjects.subject("swin", settings)
    assert first.record == again.record and first is not again
    longer = bench("vision.settings").Settings(settings.folder)
    with pytest.raises(ValueError, match="delete it to train anew"):
        subjects.subject("swin", longer)


def test_every_part_is_found(bench: Load, settings: Any, tmp_path: Path) -> None:
    main = bench("vit")
    options = main.parse(["--only", "tokens,latency", "--quick", "--output", str(tmp_path / "a.json")])
    every = [(part.section, part.name) for part in main.BENCH.parts(options, settings)]
    assert ("tokens", "Cropr: 2x") in every and ("latency", "ViT-S, batch 1") in every


def test_a_run_writes_its_rows_and_draws_them(bench: Load, settings: Any, tmp_path: Path) -> None:
    output, places = tmp_path / "a.json", ["--networks-at", str(settings.folder), "--images", str(tmp_path)]
    options = ["--quick", "--only", "tokens,static", "--parts", "[Crd][raen][on][pds]*[!g]", "--output", str(output)]
    bench("vit").main([*options, *places])
    results = json.loads(output.read_text())
    row = results["tokens"]["Cropr: 2x"]["rows"][0]
    assert row["macs"] < results["tokens"]["dense"]["macs"] and 0 <= row["accuracy_tuned"] <= 1
    assert results["static"]["random: 50%"]["rows"][0]["sparsity"] == 0.5
    assert {path.name for path in tmp_path.glob("*.png")} == {"vit_static.png", "vit_tokens.png"}
