"""SlimSAM: two steps, each cut then aligned; widths, losses and checkpoints are what they should be."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import vit.slimsam as slimsam
from secateur.allocation import Budget, allocate, allocate_per_group
from secateur.importance import Disturbed, Fisher, Normalized, Taylor
from secateur.recovery.distill import Features, OutputError
from secateur.surgery.cost import count_macs, count_params
from secateur.surgery.network import Network
from secateur.units import Criterion, Scores
from tests.contracts import assert_deterministic, assert_mask_equals_cut, assert_same, assert_scores_fit
from tests.secateur.toys import rank_correlation
from tests.vit.digits import pictures, trained
from tests.vit.models import inputs, random_model, run
from vit.alignment import Alignment, Lesson, embedding_of
from vit.data import ImageBatches
from vit.saving import load, save
from vit.slimsam import Slim, SlimSam
from vit.units import Kind, prunable

Strike = Callable[[int], object]
KINDS: tuple[Kind, ...] = ("embedding", "heads", "neurons")
QUICK = SlimSam(steps=4, rate=1e-3, validate_every=2)


@dataclass(frozen=True)
class Noise:
    """Batches of random images, and what happens when one is asked for."""

    size: int = 16
    strike: Strike = lambda step: None

    def batch_at(self, step: int, /) -> Tensor:
        self.strike(step)
        return torch.randn(2, 3, self.size, self.size, generator=torch.Generator().manual_seed(step))


def pixels(family: str) -> Tensor:
    return inputs(family)["pixel_values"]


def fitted(family: str, method: SlimSam, **options: Any) -> Slim:
    batches = options.pop("batches", Noise(pixels(family).shape[-1]))
    return method.fit(random_model(family), batches, [pixels(family)], [pixels(family)], **options)


@cache
def slim(family: str) -> Slim:
    return fitted(family, QUICK)


def test_both_steps_leave_their_share_of_every_width() -> None:
    made, dense = slim("sam"), random_model("sam")
    assert {group.name.rpartition(".")[2]: group.size for group in made.network.groups()} == {
        "embedding": 8,
        "heads": 2,
        "neurons": 10,
    }
    encoder: Any = made.network.module.get_submodule("vision_encoder")
    assert (
        encoder.patch_embed.projection.out_channels
        == encoder.pos_embed.shape[-1]
        == encoder.neck.conv1.in_channels
        == 8
    )
    for layer, before in zip(encoder.layers, dense.get_submodule("vision_encoder").layers, strict=True):  # type: ignore[arg-type]
        assert (layer.attn.qkv.in_features, layer.attn.qkv.out_features) == (8, 3 * 8)
        assert (layer.attn.num_attention_heads, layer.attn.scale) == (2, before.attn.scale)
        assert layer.attn.rel_pos_h.shape == before.attn.rel_pos_h.shape, "a head keeps its width, so its table stays"
        assert (layer.mlp.lin1.out_features, layer.mlp.lin2.out_features) == (10, 8)
    assert count_params(made.network.module) < 0.55 * count_params(dense)
    assert count_macs(made.network.module, inputs("sam")) < 0.6 * count_macs(dense, inputs("sam"))
    assert not made.network.module.training


def test_history_of_cuts_rebuilds_the_network_from_the_dense_model() -> None:
    made = slim("sam").network
    dense = prunable(random_model("sam"), KINDS)
    stays = {
        name: kept.rows
        for (name, dim), kept in made.cuts.rows.items()
        if name.endswith("neck.conv1.weight") and dim == 1
    }
    assert [len(rows) for rows in stays.values()] == [8]
    assert {name: kept.size for (name, dim), kept in made.cuts.rows.items() if dim == 0} == {
        name: dense.tensors()[name].shape[0] for (name, dim), _ in made.cuts.rows.items() if dim == 0
    }, "rows are counted as in the dense model, after both steps"


@pytest.mark.parametrize("family", ["sam", "vit"])
def test_each_step_ends_nearer_to_the_dense_embedding_than_it_began(family: str) -> None:
    for record in slim(family).records:
        scores = [score for _, score in record.validations]
        assert max(scores) > scores[0]
    second = slim(family).records[1].validations
    dense = run(family)(random_model(family))
    assert -max(score for _, score in second) == pytest.approx(
        float(functional.mse_loss(run(family)(slim(family).network), dense)), rel=1e-5
    )


def test_saved_and_loaded_it_computes_the_same(tmp_path: Path) -> None:
    for family in ("sam", "vit"):
        made: Any = slim(family).network
        save(made, tmp_path / family, dense=random_model(family), recipe={"method": repr(QUICK)})
        assert_same(run(family)(made), run(family)(load(tmp_path / family)))
        plain = type(made.module).from_pretrained(tmp_path / family)
        assert_same(run(family)(made), run(family)(plain.eval()))


@pytest.mark.parametrize("family", ["sam", "vit", "dinov2", "swin"])
@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_mask_is_the_cut(family: str, ranking: str) -> None:
    target = prunable(random_model(family), KINDS, inputs(family))
    scores = Normalized(Taylor("elements")).score(target, Disturbed([pixels(family)], read=embedding_of))
    assert_scores_fit(scores, target.groups())
    keep = {}
    for kind in KINDS:
        groups = [group for group in target.groups() if group.name.endswith(kind)]
        keep |= (allocate_per_group if ranking == "local" else allocate)(scores, groups, Budget(share=0.5))
    largest = float(run(family)(target.cut(keep)).abs().max())
    assert_mask_equals_cut(target, keep, run(family), atol=1e-5 * max(1.0, largest))


def test_global_ranking_lets_layers_keep_different_widths() -> None:
    made = fitted("sam", replace(QUICK, ranking="global", share=0.6, steps=1))
    sizes = {group.name: group.size for group in made.network.groups()}
    assert sum(size for name, size in sizes.items() if name.endswith("neurons")) == 36
    assert sum(size for name, size in sizes.items() if name.endswith("heads")) == 7


def test_dimensions_of_heads_go_where_heads_are_told_to_stay() -> None:
    made = fitted("vit", replace(QUICK, attention="head_dims", steps=1))
    attention: Any = made.network.module.get_submodule("vit.layers.0.attention")
    assert (attention.num_attention_heads, attention.head_dim, attention.scaling) == (4, 3, 6**-0.5)


@pytest.mark.parametrize("criterion", [Taylor("elements"), Fisher()], ids=["mean of absolutes", "mean of squares"])
def test_without_noise_nothing_is_worth_anything_and_with_it_the_ranking_holds(criterion: Criterion) -> None:
    target = prunable(random_model("sam"), ("embedding", "neurons"))
    images = torch.randn(48, 3, 16, 16, generator=torch.Generator().manual_seed(2)).split(1)

    def scores(sigma: float, seed: int, count: int = 48) -> Scores:
        return criterion.score(target, Disturbed(images[:count], sigma, seed, embedding_of))

    assert all(not score.any() for score in scores(0.0, 0, 2).values())
    first, second = scores(0.01, 1), scores(0.01, 2)
    assert all(bool((score > 0).all()) for score in first.values())
    stable = [rank_correlation(first[name], second[name]) for name in first]
    assert min(stable) > 0.7 and sum(stable) / len(stable) > 0.8


def test_the_weights_of_the_lessons_follow_the_papers_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    class Noted(Alignment):
        def __init__(self, student: nn.Module, reference: nn.Module, lessons: Any, *args: Any, **options: Any) -> None:
            weights = [[lesson.weight(done) for done in (0.0, 0.25, 0.5, 1.0)] for lesson in lessons]
            seen.append((weights, [lesson.teacher is reference for lesson in lessons], lessons))
            super().__init__(student, reference, lessons, *args, **options)

    monkeypatch.setattr(slimsam, "Alignment", Noted)
    fitted("vit", replace(QUICK, steps=1))
    fitted("vit", replace(QUICK, steps=1, alternate=False))
    first, second, at_once = seen
    assert first[:2] == ([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 1.0, 1.0]], [True, True])
    assert second[:2] == ([[1.0, 0.5, 0.0, 0.0], [0.0, 0.5, 1.0, 1.0]], [False, True])
    inner = [name for term in first[2][0].terms for name in term.names]
    assert inner[:3] == [f"vit.layers.0.attention.{name}_proj" for name in "qkv"] and len(inner) == 3 * 4
    assert inner[-1] == "vit.layers.2.mlp.fc1"
    outputs, embedding = second[2][0].terms
    assert outputs.names == ("vit.layers.0", "vit.layers.1", "vit.layers.2") and isinstance(embedding, OutputError)
    kept = at_once[2][0].terms[0].kept
    assert list(kept) == list(outputs.names) and all(len(rows) == 12 for rows in kept.values())


def test_alignment_adds_up_its_lessons() -> None:
    student, teacher, other = (random_model("vit", seed=seed) for seed in range(3))
    layer, images = "vit.layers.1", pixels("vit")
    lessons = [
        Lesson(other, (Features((layer,), dim=-1, weight=3.0),), lambda done: 1 - done),
        Lesson(teacher, (OutputError(),), lambda done: done),
    ]
    module = Alignment(student, teacher, lessons, [images], steps=4)
    inner = functional.mse_loss(hidden(student, layer, images), hidden(other, layer, images))
    outer = functional.mse_loss(student(images).logits, teacher(images).logits)
    torch.testing.assert_close(module.training_step(images, 1), 0.75 * 3 * inner + 0.25 * outer)
    torch.testing.assert_close(module.training_step({"pixel_values": images, "labels": None}, 4), outer)
    assert module.validation_score() == pytest.approx(-float(outer.detach()))
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"student"}, "teachers do not train"
    same = Alignment(student, student, [Lesson(student, lessons[0].terms, lambda done: 1.0)], [images], steps=1)
    assert float(same.training_step(images, 0).detach()) == 0


def hidden(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    found: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda *call: found.append(call[2]))
    model(images)
    handle.remove()
    return found[0]


def test_a_whole_share_changes_nothing() -> None:
    made = fitted("vit", replace(QUICK, share=1.0, steps=2))
    assert_same(run("vit")(random_model("vit")), run("vit")(made.network))


def test_the_same_seed_gives_the_same_network() -> None:
    def weights() -> dict[str, Any]:
        return dict(fitted("vit", replace(QUICK, steps=2)).network.module.state_dict())

    assert_deterministic(weights)


@dataclass(frozen=True)
class Counted:
    """A criterion that notes when it is asked."""

    criterion: Criterion
    asked: list[int]

    def score(self, target: Network, calibration: Any = None) -> Scores:
        self.asked.append(1)
        return self.criterion.score(target, calibration)

    def __repr__(self) -> str:
        return repr(self.criterion)


@pytest.mark.parametrize("stopped_in", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, stopped_in: int) -> None:
    asked: list[int] = []
    method = replace(QUICK, criterion=Counted(QUICK.criterion, asked))
    calls: list[int] = []

    def strike(step: int) -> None:
        calls.append(step)
        if len(calls) == {1: 2, 2: 7}[stopped_in]:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="resume goes on"):
        fitted("vit", method, batches=Noise(8, strike), work=tmp_path)
    before = len(asked)
    assert before == {1: 1, 2: 3}[stopped_in]
    resumed = fitted("vit", method, work=tmp_path)
    assert len(asked) == 3, "no score is made twice"
    assert_same(dict(slim("vit").network.module.state_dict()), dict(resumed.network.module.state_dict()))
    assert resumed.records == slim("vit").records


def test_images_of_another_name_are_no_reason_to_go_on(tmp_path: Path) -> None:
    asked: list[int] = []
    method = replace(QUICK, steps=1, criterion=Counted(QUICK.criterion, asked))
    for images in ("first", "second", "second"):
        fitted("vit", method, work=tmp_path, identity={"images": images})
    assert len(asked) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, r"share in \(0, 1\]"),
        ({"alpha": 2.0}, r"alpha in \[0, 1\]"),
        ({"steps": 0}, "steps >= 1"),
        ({"attention": "queries"}, "attention must be 'heads'"),
        ({"ranking": "none"}, "ranking 'local'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlimSam(**options)


def test_what_cannot_be_slimmed_is_refused() -> None:
    images = pixels("vit")
    with pytest.raises(ValueError, match="Linear is no vision transformer"):
        QUICK.fit(nn.Linear(3, 3), Noise(8), [images], [images])
    with pytest.raises(ValueError, match="images must be 8 x 8 pixels for this model, got 16 x 16"):
        QUICK.fit(random_model("vit"), Noise(8), [pixels("sam")], [images])
    with pytest.raises(ValueError, match="one batch of each"):
        QUICK.fit(random_model("vit"), Noise(8), [images], [])
    with pytest.raises(ValueError, match="returns a dict without logits or last_hidden_state"):
        embedding_of({})


@pytest.mark.parametrize("seed", [0, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 2))])
def test_two_steps_come_nearer_than_one_of_the_same_cost(seed: int) -> None:
    """Against all cuts at once and distillation of the embedding alone, with the paper's dimensions of heads."""
    data, rest = pictures()
    calibration = [batch["pixel_values"] for batch in data.subset(slice(128)).in_order(8)]
    method = SlimSam(attention="head_dims", steps=60, rate=2e-3, validate_every=10, patience=2)
    errors = []
    for each in (method, replace(method, alternate=False, alpha=0.0)):
        batches = ImageBatches(data, 32, seed)
        made = each.fit(trained(seed), batches, calibration, [rest.pixel_values()], seed=seed)
        assert sum(record.steps for record in made.records) == 120
        errors.append(-max(score for _, score in made.records[-1].validations))
    assert errors[0] < 0.95 * errors[1]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parents[2] / "scripts" / "slim_sam.py"
    spec = importlib.util.spec_from_file_location("slim_sam", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their annotations up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_script_slims_a_model_on_a_folder_of_pictures(script: ModuleType, tmp_path: Path) -> None:
    model: Any = random_model("vit")
    model.save_pretrained(tmp_path / "model")
    for index in range(8):
        (tmp_path / "images" / str(index % 2)).mkdir(parents=True, exist_ok=True)
        noise = torch.randint(256, (9, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))
        Image.fromarray(noise.numpy()).save(tmp_path / "images" / str(index % 2) / f"{index}.png")
    arguments = [str(tmp_path / name) for name in ("model", "images", "slim")]
    numbers = ["--steps", "2", "--validate-every", "1", "--held-out", "3", "--calibration", "4", "--batch-size", "2"]
    record = script.main(script.parse([*arguments, *numbers]))
    assert record["slim"]["multiply_adds"] < 0.5 * record["dense"]["multiply_adds"]
    assert len(record["mean_squared_errors"]) == 2
    loaded: Any = load(tmp_path / "slim")
    assert loaded(pixels("vit")).logits.shape == (2, 5)


def test_the_script_runs_without_a_model(script: ModuleType, tmp_path: Path) -> None:
    options = script.parse([str(tmp_path / "slim"), "--random-sam", "--steps", "1", "--at-once"])
    record = script.main(options)
    assert len(record["mean_squared_errors"]) == 1
    with pytest.raises(SystemExit):
        script.parse([str(tmp_path / "slim")])
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match="0 pictures; more than --held-out 100"):
        random_model("vit").save_pretrained(tmp_path / "model")  # type: ignore[operator]
        script.main(script.parse([str(tmp_path / "model"), str(tmp_path / "none"), str(tmp_path / "slim")]))
