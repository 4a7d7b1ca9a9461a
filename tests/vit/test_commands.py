"""`secateur vit ...` and `secateur evaluate` on folders of vision transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("transformers")

from secateur.cli import BAD_INPUT, main
from tests.secateur.evaluation.runs import merge_compare_and_list
from tests.vit.recipes import save_model

RECIPE = """
model: {{id: {model}, device: cpu}}
data: {{class_path: vit.sources.NoiseImages, init_args: {{count: 12}}}}
steps:
  - static:
      criterion: {{class_path: secateur.importance.Taylor}}
      budget: {{remove: 0.3}}
  - tokens:
      pruner: {{class_path: vit.tokens.TokenMerging}}
      schedule: {{class_path: vit.tokens.Target, init_args: {{share: 0.9}}}}
calibration: {{images: 4, batch_size: 4}}
evaluation: {{batch_size: 4, repeats: 1}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE.format(model=folder))
    return path


def save_images(folder: Path, classes: int = 5) -> Path:
    for name in "abcdefgh"[:classes]:
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.new("RGB", (11, 9), (40 * index, 10, 20)).save(folder / name / f"{index}.png")
    return folder


def test_a_dry_run_writes_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["vit", "prune", str(recipe), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be pruned" in said and "static" in said and "tokens" in said
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["vit", "prune", str(recipe), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"][1]["size"]["macs"]


def test_from_recipe_to_folder_to_a_comparison(
    recipe: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, images = tmp_path / "pruned", save_images(tmp_path / "images")
    assert main(["vit", "prune", str(recipe), "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said and "images/s" in said
    for index, command in enumerate((["vit", "evaluate"], ["evaluate"])):
        report = tmp_path / f"report-{index}"
        asked = [*command, str(folder), str(output), "-o", str(report), "--data", str(images), "--batch", "2"]
        assert main(asked) == 0
        record = json.loads((report / "results.json").read_text())
        assert record["candidates"][0]["name"] == "pruned"
        pruned, dense = (
            one["measurements"]["params"]["value"] for one in (record["candidates"][0], record["reference"])
        )
        assert pruned < dense
        assert (report / "index.html").is_file()
    more = tmp_path / "more.yaml"
    more.write_text(recipe.read_text().replace("remove: 0.3", "remove: 0.5"))
    assert main(["vit", "prune", str(more), "-o", str(tmp_path / "smaller")]) == 0
    merged = merge_compare_and_list(output, tmp_path / "smaller", tmp_path / "both")
    sizes = [one.measurements["params"].value or 0 for one in merged.candidates if one.name.endswith("static")]
    assert sizes[1] < sizes[0] < (merged.reference.measurements["params"].value or 0) and merged.pairs


def test_info_counts_units(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vit", "info", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["patches"] == 4 and not found["pruned"]
    assert found["units"]["heads"]["units"] == 12 and found["units"]["blocks"]["units"] == 3
    assert main(["vit", "info", str(folder)]) == 0
    assert "feed-forwards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune", "absent.yaml"], "absent.yaml: no such file"),
        (["info", "absent"], "absent: no folder, and no repository"),
        (["evaluate", "absent", "also", "-o", "x"], "absent: no folder"),
        (["prune"], "missing"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vit", *arguments]) == BAD_INPUT
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in said


def test_images_of_other_classes_are_one_clear_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = save_images(tmp_path / "images", classes=7)
    asked = ["vit", "evaluate", str(folder), str(folder), "-o", str(tmp_path / "x"), "--data", str(images)]
    assert main(asked) == BAD_INPUT
    assert "labels have 7 classes (a, b, c, d, ...), the model has 5" in capsys.readouterr().err


def test_the_readme_s_recipe_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    text = readme.split("## Vision transformers")[1].split("```yaml\n")[1].split("```")[0]
    shutil.copytree(folder, tmp_path / "my-vit")
    for part in ("train", "test"):
        save_images(tmp_path / "images" / part)
    # The tiny model has four patches, and three layers of few neurons.
    short = text.replace("steps: 2000", "steps: 2, batch_size: 4").replace("share: 0.8", "share: 0.95")
    assert short != text
    (tmp_path / "recipe.yaml").write_text(short)
    monkeypatch.chdir(tmp_path)
    assert main(["vit", "prune", "recipe.yaml"]) == 0
    asked = ["evaluate", "my-vit", "small-vit", "-o", "comparison", "--data", "images/test"]
    assert main(asked) == 0
    assert (tmp_path / "comparison" / "index.html").is_file()
