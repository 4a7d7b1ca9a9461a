"""Recipes of vision transformers: what is refused before anything is loaded, and what a dry run says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from secateur.importance import Taylor
from secateur.recipe import read_recipe, recipe_of
from tests.vit.recipes import recipe, save_model
from vit.choose import demo_folder
from vit.models import PUBLISHED
from vit.prune import dry_run, prune
from vit.recipe import VitRecipe
from vit.shipped import RECIPES
from vit.sources import DemoImages, ImageParts
from vit.steps import Blocks, Budget, CroprStages, Distil, Recovery, Static, Step, Tokens
from vit.tokens import Target, TokenMerging

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("vit"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_read_and_name_what_is_there(path: Path) -> None:
    found = read_recipe(path, VitRecipe).recipe
    assert found.output == Path("out") / path.stem
    if found.model.id not in PUBLISHED:
        try:
            assert Path(demo_folder(found.model.id)).is_dir()
        except FileNotFoundError:
            pytest.skip(f"the demo model {found.model.id} is not here")


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_plan(path: Path) -> None:
    file = read_recipe(path, VitRecipe)
    if file.recipe.model.id not in PUBLISHED and not Path(demo_folder(file.recipe.model.id)).is_dir():
        pytest.skip(f"the demo model {file.recipe.model.id} is not here")
    found = dry_run(file)
    last = found.steps[-1].size
    if any(step.sparse is None and step.recover is None for step in file.recipe.steps):
        assert last.macs is not None and found.dense.macs is not None and last.macs < found.dense.macs


def test_a_plan_shows_itself_in_a_notebook(folder: Path) -> None:
    shown = dry_run(recipe(folder))._repr_html_()
    assert shown.count("<table>") == 1 and "would be pruned" in shown and "<td>dense</td>" in shown


def test_a_recipe_of_python_is_the_same_as_yaml(tmp_path: Path, folder: Path) -> None:
    steps = (
        Step(static=Static(Budget(remove=0.2), kinds=("heads",), criterion=Taylor())),
        Step(tokens=Tokens(Target(0.8), learned=CroprStages())),
        Step(recover=Recovery(steps=2, distil=Distil(hard=0.5))),
        Step(recover=Recovery(steps=2, distil=Distil())),
    )
    made = recipe(folder, *steps)
    assert read_recipe(recipe_of(made).save(tmp_path), VitRecipe).recipe == made


def test_a_dry_run_plans_all_steps_in_order_without_weights(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "config.json"
    bare.write_text((folder / "config.json").read_text())
    steps = (
        Step(static=Static(Budget(remove=0.3))),
        Step(tokens=Tokens(Target(0.9), TokenMerging())),
    )
    found = dry_run(recipe(bare, *steps))
    static, tokens = (step.size.macs for step in found.steps)
    assert found.dense.macs and static and tokens
    assert tokens < static <= 0.7 * found.dense.macs
    assert found.steps[0].tokens is None and found.steps[1].tokens is not None
    assert found.steps[0].size.params == found.steps[1].size.params
    assert found.steps[0].units and not found.steps[1].units


def test_blocks_are_planned(tmp_path: Path) -> None:
    folder = save_model(tmp_path, hidden_size=32, intermediate_size=32)
    method = Blocks(0.5).method.__class__(rows=16, columns=16)
    found = dry_run(recipe(folder, Step(blocks=Blocks(0.5, method=method))))
    assert found.steps[0].size.params < found.dense.params
    assert found.steps[0].size.macs < found.dense.macs  # type: ignore[operator]


STATIC = "steps:\n  - static: {budget: {remove: 0.2}}\n"
REFUSED = [
    ("steps:\n  - static: {kinds: [channels], budget: {remove: 0.2}}\n", 2, "channels"),
    ("steps:\n  - static: {modules: [absent.*], budget: {remove: 0.2}}\n", 3, "absent.*"),
    ("steps:\n  - static: {budget: {remove: 0.99}}\n", 3, "cannot have"),
    ("steps:\n  - static: {budget: {remove: 0.2, limit: 5}}\n", 2, "one of remove and limit"),
    ("steps:\n  - static: {budget: {remove: 1.2}}\n", 2, "at least 0 and below 1"),
    ("steps:\n  - static: {budget: {remove: 0.1}}\n    recover: {steps: 1}\n", 2, "a step is one of"),
    (f"{STATIC}calibration: {{imagez: 5}}\n", 4, "there is no 'imagez'"),
    (
        "steps:\n  - tokens:\n      pruner: {class_path: vit.tokens.TokenNorm}\n"
        "      schedule: {class_path: vit.tokens.PerLayer, init_args: {removed: 2}}\n",
        3,
        "leaves layer 2 0 of 4 patches",
    ),
    (
        "steps:\n  - tokens:\n      learned: {class_path: vit.steps.CroprStages}\n"
        "      schedule: {class_path: vit.tokens.Target, init_args: {share: 0.9}}\n",
        None,
        "add a recover step behind it",
    ),
    ("steps:\n  - blocks: {remove: 0.5}\n  - static: {budget: {remove: 0.2}}\n", None, "put blocks after it"),
]


@pytest.mark.parametrize(("text", "line", "says"), REFUSED, ids=[says for _, _, says in REFUSED])
def test_what_cannot_be_done_is_refused_with_its_line(
    folder: Path, tmp_path: Path, text: str, line: int | None, says: str
) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"model: {{id: {folder}}}\n{text}")
    with pytest.raises(ValueError) as raised:
        dry_run(read_recipe(path, VitRecipe))
    assert says in str(raised.value)
    assert line is None or f"some.yaml:{line}: " in str(raised.value)


def test_models_that_are_no_vision_transformers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}')
    with pytest.raises(ValueError, match=r"model\.id: .*no vision transformer|model\.id: .*image_size"):
        dry_run(recipe(tmp_path))
    with pytest.raises(FileNotFoundError, match="absent: no folder, and no repository"):
        dry_run(recipe("absent"))


def test_a_token_schedule_for_windows_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "swin")
    with pytest.raises(ValueError, match=r"steps\[0\]\.tokens: .*fixed windows"):
        dry_run(recipe(folder, Step(tokens=Tokens(Target(0.9), TokenMerging()))))


@dataclass(frozen=True)
class Wrong:
    """Images of another size, or classes that the model lacks."""

    size: int = 8
    classes: int = 5

    def gather(self, model: object) -> ImageParts:
        from tests.vit.images import noise

        return ImageParts(*(noise(12, size=self.size, classes=self.classes) for _ in range(3)))


def test_images_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data: images are 16 x 16 pixels with 3 channels; .* takes 8 x 8"):
        prune(recipe(folder, data=Wrong(size=16)), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data: labels have 9 classes .* the model has 5"):
        prune(recipe(folder, data=Wrong(classes=9)), tmp_path / "b")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"28 x 28 pixels with 1 channels|Fashion-MNIST"):
        try:
            prune(recipe(folder, data=DemoImages(most=4)), tmp_path / "c")
        except FileNotFoundError as error:
            pytest.skip(str(error))
