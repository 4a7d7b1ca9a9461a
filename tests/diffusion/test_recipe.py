"""Recipes of diffusion models: what is refused before anything is loaded, and what a dry run says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from diffusion.calibrate import read_prompts
from diffusion.data import DemoData
from diffusion.models import PUBLISHED, find
from diffusion.prune import dry_run, prune
from diffusion.recipe import Budget, Calibration, DiffusionRecipe, Recovery, Units
from diffusion.shipped import RECIPES
from secateur.recipe import RecipeFile, read_recipe, recipe_of
from tests.diffusion.recipes import recipe, save_dit

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dit(tmp_path_factory.mktemp("dit"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_read_and_name_what_is_there(path: Path) -> None:
    found = read_recipe(path, DiffusionRecipe).recipe
    assert found.output == Path("out") / path.stem
    assert found.calibration.prompts_file is None or read_prompts(found.calibration)
    if found.model.id not in PUBLISHED:
        try:
            find(found.model.id)
        except FileNotFoundError:
            pytest.skip(f"the demo model {found.model.id} is not here")


def test_a_recipe_of_python_is_the_same_as_yaml(tmp_path: Path, dit: Path) -> None:
    made = recipe(dit, units=Units(kinds=("heads",), floors={"*attn1.heads": 2}))
    assert read_recipe(recipe_of(made).save(tmp_path), DiffusionRecipe).recipe == made


def test_a_dry_run_plans_without_weights(dit: Path, tmp_path: Path) -> None:
    bare = tmp_path / "config.json"
    bare.write_text((dit / "transformer" / "config.json").read_text())
    found = dry_run(recipe(bare, budget=Budget(remove=0.2, cost="macs")))
    assert found.plan.dense.macs and found.plan.pruned.macs
    gone = found.plan.dense.macs - found.plan.pruned.macs
    assert gone >= 0.2 * found.plan.dense.macs
    assert set(found.kinds) == {"heads", "neurons"}
    assert found.estimate.forwards["evaluate"] == 4 * 2 * 2
    assert found.estimate.memory_bytes > found.plan.dense.bytes
    shown = found._repr_html_()
    assert shown.count("<table>") == 2 and "would be pruned" in shown and "memory for weights" in shown


def test_parts_of_a_batch_take_the_memory_of_one(dit: Path) -> None:
    at_once, in_parts = (
        dry_run(recipe(dit, recovery=Recovery(steps=2, batch_size=256, accumulate=parts))).estimate for parts in (1, 8)
    )
    assert in_parts.activations_bytes < 0.2 * at_once.activations_bytes
    assert in_parts.forwards == at_once.forwards and in_parts.weights_bytes == at_once.weights_bytes


REFUSED = [
    ("units: {kinds: [channels]}\n", 2, "channels"),
    ("units:\n  modules: [transformer_blocks.0, absent.*]\n", 3, "'absent.*' matches none"),
    ("units:\n  floors:\n    absent: 2\n", 4, "matches none"),
    ("budget:\n  remove: 0.99\n", 2, "cannot go"),
    ("budget:\n  limit: 100\n", 2, "cannot go"),
    ("budget: {by_kind: {channels: 0.5}}\n", None, "none of units.kinds"),
    ("budget: {remove: 0.2, limit: 5}\n", 2, "one of remove, limit and by_kind"),
    ("budget: {remove: 1.2}\n", 2, "at least 0 and below 1"),
    ("units: {drop: [absent]}\n", None, "not both"),
    ("calibration: {stepz: 5}\n", 2, "there is no 'stepz'"),
    ("recovery: {steps: 1, batch_size: 10, accumulate: 4}\n", 2, "does not divide into 4 equal parts"),
    ("recovery:\n  steps: 1\n  clip_norm: -1\n", 2, "clip_norm above 0"),
    ("recovery: {weight_decay: -0.1}\n", 2, "weight_decay of at least 0"),
    ("recovery: {ema: 1.5}\n", 2, "at least 0 and below 1, got 1.5"),
    ("recovery: {validate_every: 0}\n", 2, "validate_every must be at least 1"),
    ("recovery: {adapters: {rank: 0}}\n", 2, "a rank of at least 1"),
    ("recovery: {distil: {outputs: -1}}\n", 2, "weights of at least 0"),
    ("recovery: {distil: {outputs: 0, task: 0}}\n", 2, "one above 0"),
    ("repair: {damp: -0.1}\n", 2, "damp must not be negative"),
    ("evaluation: {steps: 0}\n", 2, "steps of at least 1 or null"),
    ("evaluation: {first_seed: -1}\n", 2, "first_seed of at least 0"),
    ("experts: {pruning: {codes: 0}}\n", 2, "codes, gates, batch_size and micro_batch must be"),
    ("experts: {tuning: {ema: 1}}\n", 2, "below 1, got 1.0"),
    ("units:\n  kinds: [heads]\n  floors:\n    '*attn1.heads': 5\n", 5, "5 units cannot stay"),
    ("units: {kinds: [heads], min_keep: 9}\n", 2, "9 units cannot stay"),
    ("calibration:\n  steps: 3\n  size: 7\n", 4, "takes latents of 7 x 7, but gives ones of 6 x 6"),
    ("calibration:\n  steps: 3\n  prompts_file: nowhere.txt\n", 4, "nowhere.txt: no such file"),
    ("calibration:\n  steps: 3\n  scheduler: diffusers.NoScheduler\n", 4, "cannot be imported"),
    ("calibration:\n  scheduler: torch.nn.Linear\n", 3, "is no scheduler"),
    *[
        (f"calibration:\n  data: {{class_path: diffusion.data.{name}, init_args: {{{text}}}}}\n", 2, says)
        for name, text, says in (
            ("OwnSamples", "batch_size: 0", "count and batch_size of at least 1"),
            ("DemoData", "name: digits, count: -5", "count of at least 1 or null"),
            ("DemoData", "name: digits, count: 0", "a seed of at least 0"),
            ("Pictures", "folder: pictures, side: 0", "side, batch_size and count"),
        )
    ],
]


@pytest.mark.parametrize(("text", "line", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_cannot_be_done_is_refused_with_its_line(
    dit: Path, tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    path = tmp_path / "some.yaml"
    rest = "criterion: {class_path: secateur.importance.Magnitude}\n"
    rest += "" if "budget" in text else "budget: {remove: 0.1}\n"
    path.write_text(f"model: {{id: {dit}}}\n{text}{'' if 'experts' in text else rest}")
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        dry_run(read_recipe(path, DiffusionRecipe))
    assert says in str(raised.value)
    assert line is None or f"some.yaml:{line}: " in str(raised.value)


def test_a_device_is_asked_for_when_it_is_needed(dit: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    rest = "criterion: {class_path: secateur.importance.Magnitude}\nbudget: {remove: 0.1}\n"
    path.write_text(f"model:\n  id: {dit}\n  device: cuda:99\n{rest}")
    file = read_recipe(path, DiffusionRecipe)
    assert dry_run(file).estimate.seconds > 0
    with pytest.raises(ValueError, match=r"some\.yaml:3: model\.device: cuda:99 cannot be used here"):
        prune(file, tmp_path / "small")
    for device in ("tpu", "meta"):
        path.write_text(f"model: {{id: {dit}, device: {device}}}\n{rest}")
        with pytest.raises(ValueError, match=rf"some\.yaml:1: model: device '{device}' is none.*choose cpu or cuda"):
            read_recipe(path, DiffusionRecipe)


def test_data_of_another_size_are_refused(dit: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    calibration = Calibration(count=4, steps=2, size=4, data=DemoData("digits", count=8))
    wrong = recipe(dit, calibration=calibration, recovery=Recovery(steps=1))
    with pytest.raises(ValueError, match=r"calibration\.data: these latents are \(1, 8, 8\).*samples \(1, 4, 4\)"):
        prune(wrong, tmp_path)


def test_a_model_that_is_not_there_is_named(dit: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no model of diffusers"):
        find(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no component unet with a config\.json; it has \['transformer'\]"):
        find(str(dit), "unet")


def test_whole_blocks_that_are_named_go(dit: Path) -> None:
    units = Units(kinds=("transformer_blocks",), drop=("transformer_blocks.1",))
    found = dry_run(recipe(dit, units=units, criterion=None, budget=None))
    assert found.kinds == {"transformer_blocks": (1, 2)}
    absent = Units(kinds=("transformer_blocks",), drop=("transformer_blocks.7",))
    with pytest.raises(ValueError, match="matches none of 2 modules"):
        dry_run(recipe(dit, units=absent, criterion=None, budget=None))


def gigabytes(file: RecipeFile[DiffusionRecipe]) -> int:
    """Of the GPU that a recipe's header names."""
    found = re.search(r"Needs a GPU with (\d+) GB\.", file.text)
    assert found, "a recipe of a large model says what it needs: 'Needs a GPU with 24 GB.'"
    return int(found[1])


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_plan(path: Path) -> None:
    file = read_recipe(path, DiffusionRecipe)
    if file.recipe.model.id not in PUBLISHED and not (ROOT / "diffusion/demo/models" / file.recipe.model.id).is_dir():
        pytest.skip(f"the demo model {file.recipe.model.id} is not here")
    found = dry_run(file)
    if file.recipe.model.id in PUBLISHED:
        # Text encoders, autoencoder and what CUDA takes for itself are no part of the estimate.
        assert found.estimate.memory_bytes <= 0.92e9 * gigabytes(file)
    budget = file.recipe.budget
    assert found.plan.pruned.params < found.plan.dense.params
    if budget is not None and budget.remove is not None and budget.of == "model" and budget.cost != "ms":
        left = getattr(found.plan.pruned, budget.cost) / getattr(found.plan.dense, budget.cost)
        assert left <= 1 - budget.remove + 1e-6
