"""Recipes carried out on tiny models: what is written loads back, budgets hold, and stages are not repeated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import vit
from secateur.block_sparse import BlockSparseLinear
from secateur.evaluation.run import hash_path
from secateur.granularity import NofM
from secateur.importance import HessianProduct, Magnitude, Random, Taylor, Wanda
from secateur.recipe import NAME
from secateur.surgery.cost import count_params
from secateur.units import Scores
from tests.secateur.evaluation.runs import checked_run
from tests.secateur.evaluation.stops import count_chunks
from tests.vit.models import first_output, inputs
from tests.vit.recipes import JUDGING, recipe, save_model
from vit.lpvit import LPViT
from vit.prune import prune
from vit.pruned import BLOCKS, load_pruned
from vit.saving import read_manifest
from vit.slimsam import SlimSam
from vit.steps import (
    Blocks,
    Budget,
    CroprStages,
    Distil,
    Distortion,
    DynamicViTPredictors,
    Greedy,
    GreedyStage,
    Recovery,
    Sparse,
    Static,
    Step,
    Tokens,
)
from vit.tokens import ClsAttention, Counts, LinearScorer, ReducedModel, Target, TokenMerging
from vit.tokens.reduced_model import TOKENS

STATIC = Step(static=Static(Budget(remove=0.3)))
SHORT = Recovery(steps=2, batch_size=4, rate=1e-3)
WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("vit"))


def outputs(model: nn.Module, family: str = "vit") -> Tensor:
    with torch.no_grad():
        return first_output(model(**inputs(family)))


def test_what_a_run_writes_loads_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    recover = replace(SHORT, ema=0.5, validate_every=2, distil=Distil(features=1.0))
    pruned, record = prune(recipe(folder, STATIC, Step(recover=recover)), tmp_path)
    assert torch.equal(outputs(vit.load(tmp_path)), outputs(pruned.runnable()))
    assert [one.name for one in record.evaluation.candidates] == ["static", "recovered"]
    static, recovered = record.evaluation.candidates
    assert record.dense.macs and static.macs == recovered.macs <= 0.7 * record.dense.macs
    assert static.macs == record.steps[0].size.macs
    assert record.recoveries[0].steps == 2
    written = checked_run(tmp_path)
    cut, last = written.candidates
    assert last.measurements["params"].value == count_params(pruned.network.module) and last.path == str(tmp_path)
    assert written.reference.path == str(folder) and written.reference.sha256 == hash_path(folder)
    assert cut.details["step"] == "static" and cut.details["kept_units"] and not last.details["kept_units"]
    assert written.details["recoveries"][0]["steps"] == 2 and written.runs[0].seeds.keys() == {
        "intervals",
        "calibration",
    }
    metrics = read_manifest(tmp_path)["metrics"]
    assert metrics["params"] == last.measurements["params"].value and 0 <= metrics["accuracy"] <= 1
    for name in ("index.html", NAME):
        assert (tmp_path / name).stat().st_size
    assert not list((tmp_path / "stages").glob("*.ckpt"))


@pytest.mark.parametrize(
    "criterion", [Taylor(), HessianProduct(), Wanda(), Random(1)], ids=lambda one: type(one).__name__
)
def test_criteria_get_what_they_look_through(folder: Path, tmp_path: Path, criterion: Any) -> None:
    _, record = prune(recipe(folder, Step(static=Static(Budget(remove=0.3), criterion=criterion))), tmp_path)
    assert any(kept < size for kept, size in record.steps[0].units.values())


def test_counts_may_be_split_by_distortion(folder: Path, tmp_path: Path) -> None:
    _, record = prune(recipe(folder, Step(static=Static(Budget(remove=0.3), distortion=Distortion(2)))), tmp_path)
    assert record.dense.macs and record.steps[0].size.macs
    assert record.steps[0].size.macs <= 0.7 * record.dense.macs


TOKENS_LEFT = Counts((4, 3, 2))


def test_static_then_tokens_and_tokens_then_static(folder: Path, tmp_path: Path) -> None:
    tokens = Step(tokens=Tokens(TOKENS_LEFT, TokenMerging()))
    for name, steps in {"first": (STATIC, tokens), "last": (tokens, STATIC)}.items():
        pruned, record = prune(recipe(folder, *steps, Step(recover=SHORT)), tmp_path / name)
        loaded = vit.load(tmp_path / name)
        assert isinstance(loaded, ReducedModel)
        assert torch.equal(outputs(loaded), outputs(pruned.runnable()))
        assert record.steps[-1].tokens == TOKENS_LEFT.patches
        assert record.steps[-1].size.macs < record.steps[0].size.macs  # type: ignore[operator]
        assert record.evaluation.candidates[-1].macs == record.steps[-1].size.macs


@pytest.mark.parametrize("learned", [CroprStages(), DynamicViTPredictors()], ids=lambda one: type(one).__name__)
def test_token_pruners_that_learn_are_trained(folder: Path, tmp_path: Path, learned: Any) -> None:
    steps = (Step(tokens=Tokens(TOKENS_LEFT, learned=learned)), Step(recover=replace(SHORT, distil=Distil())))
    pruned, _ = prune(recipe(folder, *steps), tmp_path)
    loaded = vit.load(tmp_path)
    assert isinstance(loaded, ReducedModel)
    if isinstance(learned, CroprStages):
        assert isinstance(loaded.pruner, LinearScorer)
    assert torch.equal(outputs(loaded), outputs(pruned.runnable()))
    assert (tmp_path / TOKENS).is_file()


def test_blocks_are_multiplied_alone_and_stay_gone_in_training(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", **WIDE)
    blocks = Step(blocks=Blocks(0.5, method=LPViT(16, 16, dense_from=1.1)))
    tokens = Step(tokens=Tokens(TOKENS_LEFT, ClsAttention()))
    pruned, record = prune(recipe(folder, blocks, tokens, Step(recover=SHORT)), tmp_path / "out")
    loaded = vit.load(tmp_path / "out")
    assert any(isinstance(module, BlockSparseLinear) for module in loaded.modules())
    assert torch.equal(outputs(loaded), outputs(pruned.runnable()))
    plain = load_pruned(tmp_path / "out").network.module
    torch.testing.assert_close(
        outputs(loaded),
        outputs(pruned.tokens.on(plain)),
        rtol=1e-4,
        atol=1e-5,  # type: ignore[union-attr]
    )
    assert record.evaluation.candidates[-1].cost.params == record.steps[-1].size.params
    assert record.evaluation.candidates[-1].macs == record.steps[-1].size.macs


def test_files_of_another_result_are_taken_away_and_those_of_another_model_refused(tmp_path: Path) -> None:
    folder, out = save_model(tmp_path / "model", **WIDE), tmp_path / "out"
    prune(recipe(folder, Step(blocks=Blocks(0.5, method=LPViT(16, 16)))), out)
    held = (out / BLOCKS).read_bytes()
    prune(recipe(folder), out)
    assert not (out / BLOCKS).exists()
    (out / BLOCKS).write_bytes(held)
    with pytest.raises(ValueError, match="another model's weights"):
        vit.load(out)


@pytest.mark.parametrize("granularity", [None, NofM(2, 4)], ids=["single", "2:4"])
def test_single_weights_become_zero_and_stay_so(folder: Path, tmp_path: Path, granularity: Any) -> None:
    options = Sparse(0.5) if granularity is None else Sparse(0.5, Magnitude(), granularity)
    pruned, _ = prune(recipe(folder, Step(sparse=options), Step(recover=SHORT)), tmp_path)
    linear = [module for module in pruned.network.module.modules() if isinstance(module, nn.Linear)]
    zeros = sum(int((module.weight == 0).sum()) for module in linear)
    assert zeros >= 0.5 * sum(module.weight.numel() for module in linear) - 1


def test_depth_goes_before_width(folder: Path, tmp_path: Path) -> None:
    stages = (GreedyStage(("attentions", "feed_forwards"), 0.6), GreedyStage(("neurons",), 0.4, 4))
    pruned, record = prune(recipe(folder, Step(greedy=Greedy(Budget(remove=0.3), stages))), tmp_path)
    gone = [name for name, (kept, size) in record.steps[0].units.items() if not kept]
    assert any(name.endswith(("attention", "mlp")) for name in gone)
    assert record.dense.macs and record.steps[0].size.macs
    assert record.steps[0].size.macs <= 0.75 * record.dense.macs
    assert torch.equal(outputs(vit.load(tmp_path)), outputs(pruned.runnable()))


def test_models_without_classes_are_slimmed_and_judged_by_their_embedding(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "sam", "sam")
    pruned, record = prune(recipe(folder, Step(slim=SlimSam(0.5, steps=2, validate_every=1))), tmp_path / "out")
    assert torch.equal(outputs(vit.load(tmp_path / "out"), "sam"), outputs(pruned.runnable(), "sam"))
    one = record.evaluation.candidates[0]
    assert one.classified is None and one.embedding_error is not None and one.embedding_error > 0
    assert record.evaluation.reference.embedding_error == 0


class Own(lightning.LightningModule):
    """A user's own training."""

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.network, self._teacher = network, (teacher,)

    def training_step(self, batch: dict[str, Tensor], step: int) -> Tensor:
        return self.network(batch["pixel_values"]).logits.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), lr=1e-2)


def test_a_lightning_module_of_ones_own_trains(folder: Path, tmp_path: Path) -> None:
    before, _ = prune(recipe(folder, STATIC), tmp_path / "a")
    after, record = prune(recipe(folder, STATIC, Step(recover=replace(SHORT, module=Own))), tmp_path / "b")
    assert record.recoveries[0].steps == 2
    assert not torch.equal(outputs(before.runnable()), outputs(after.runnable()))


@dataclass(frozen=True)
class Counted:
    """Magnitudes; counts in a file how often they were asked for."""

    path: str

    def score(self, target: Any, calibration: Any = None, /) -> Scores:
        file = Path(self.path)
        file.write_text(str(int(file.read_text() or "0") + 1 if file.exists() else 1))
        return Magnitude().score(target)


def test_a_stopped_run_does_not_score_or_train_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, output = tmp_path / "count", tmp_path / "out"
    static = Step(static=Static(Budget(remove=0.3), criterion=Counted(str(counter))))
    made = recipe(folder, static, Step(recover=replace(SHORT, steps=3)))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vit.prune.evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(made, output)
    assert not (output / "results.json").exists()
    assert list((output / "stages").glob("recover-*.ckpt"))
    resumed, _ = prune(made, output)
    assert counter.read_text() == "1"
    whole, _ = prune(made, tmp_path / "whole")
    assert torch.equal(outputs(resumed.runnable()), outputs(whole.runnable()))


def test_images_that_a_stopped_run_has_judged_are_not_seen_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(folder, evaluation=replace(JUDGING, batch_size=1))
    monkeypatch.setattr("vit.evaluate.CHUNK", 4)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        count_chunks(patched, stop_before=1)
        prune(made, tmp_path)
    with monkeypatch.context() as patched:
        again = count_chunks(patched)
        _, resumed = prune(made, tmp_path)
    _, whole = prune(made, tmp_path / "whole")
    assert again == [1, 2]
    assert resumed.evaluation.candidates[0].classified == whole.evaluation.candidates[0].classified


def test_a_pruned_folder_can_be_pruned_again(folder: Path, tmp_path: Path) -> None:
    _, first = prune(recipe(folder, STATIC), tmp_path / "first")
    small, second = prune(recipe(tmp_path / "first", STATIC), tmp_path / "second")
    assert second.dense.params == first.steps[-1].size.params
    assert torch.equal(outputs(vit.load(tmp_path / "second")), outputs(small.runnable()))


def test_the_dense_model_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    steps = Step(tokens=Tokens(Target(0.9), TokenMerging())), Step(recover=replace(SHORT, distil=Distil()))
    _, record = prune(recipe(folder, *steps), tmp_path)
    assert record.evaluation.reference.classified is not None
    assert record.evaluation.reference.classified.agreement == 1.0
