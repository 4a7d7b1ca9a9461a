"""`secateur diffusion ...` and `secateur evaluate` on folders of diffusion models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch.distributed import is_gloo_available

pytest.importorskip("diffusers")

from diffusion import generate
from secateur.cli import BAD_INPUT, INTERRUPTED, main
from tests.diffusion.recipes import save_dit
from tests.secateur.evaluation.runs import merge_compare_and_list

RECIPE = """
model: {{id: {model}, device: cpu}}
criterion: {{class_path: secateur.importance.Magnitude}}
budget: {{remove: 0.1}}
calibration: {{count: 4, steps: 2, batch_size: 4}}
evaluation: {{samples: 4, batch_size: 4, repeats: 1}}
"""


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture
def recipe(dit: Path, tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(RECIPE.format(model=dit))
    return path


def test_a_dry_run_writes_nothing(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(["diffusion", "prune", str(recipe), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be pruned" in said and "heads" in said and "time on this machine" in said
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["diffusion", "prune", str(recipe), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["pruned"]["params"]


def test_from_recipe_to_pictures_to_a_comparison(
    recipe: Path, dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture, report = tmp_path / "pruned", tmp_path / "some.png", tmp_path / "report"
    assert main(["diffusion", "prune", str(recipe), "-o", str(output)]) == 0
    assert "parameters" in capsys.readouterr().out
    drawn = ["diffusion", "generate", str(output), "--prompt", "3", "--prompt", "5", "--count", "2", "--steps", "2"]
    assert main([*drawn, "-o", str(picture)]) == 0
    with Image.open(picture) as image:
        assert image.width == image.height
    assert main(["evaluate", str(dit), str(output), "-o", str(report), "--samples", "4", "--steps", "2"]) == 0
    record = json.loads((report / "results.json").read_text())
    assert record["candidates"][0]["name"] == "pruned"
    pruned, dense = (one["measurements"]["params"]["value"] for one in (record["candidates"][0], record["reference"]))
    assert pruned < dense
    assert (report / "index.html").is_file()
    more = tmp_path / "more.yaml"
    more.write_text(recipe.read_text().replace("remove: 0.1", "remove: 0.2"))
    assert main(["diffusion", "prune", str(more), "-o", str(tmp_path / "smaller")]) == 0
    merged = merge_compare_and_list(output, tmp_path / "smaller", tmp_path / "both")
    sizes = [one.measurements["params"].value or 0 for one in merged.candidates]
    assert sizes[1] < sizes[0] < (merged.reference.measurements["params"].value or 0) and merged.pairs


def test_single_pictures_go_on_where_they_stopped_and_can_be_judged(
    dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, single, real, grid = tmp_path / "asked.txt", tmp_path / "single", tmp_path / "real", tmp_path / "all.png"
    asked.write_text("3\n5\n")
    draw = ["diffusion", "generate", str(dit), "--prompt", "1", "--prompts", str(asked), "--count", "2"]
    draw += ["--steps", "2", "--batch", "4"]
    whole = generate.drawn

    def strike(generator: Any, texts: Any, places: list[int]) -> Any:
        if places[0] == 4:
            raise KeyboardInterrupt
        return whole(generator, texts, places)

    with monkeypatch.context() as patched:
        patched.setattr(generate, "drawn", strike)
        assert main([*draw, "--each", str(single)]) == INTERRUPTED
    assert f"what is finished is in {single}: the same command goes on" in capsys.readouterr().err
    names = [f"{place:06}.png" for place in range(6)]
    assert sorted(path.name for path in single.glob("*.png")) == names[:4]
    first = (single / names[0]).stat().st_mtime_ns
    assert main([*draw, "--each", str(single), "-o", str(grid)]) == 0
    assert sorted(path.name for path in single.glob("*.png")) == names
    assert (single / names[0]).stat().st_mtime_ns == first
    captions = single / "captions.json"
    assert json.loads(captions.read_text()) == dict(zip(names, "113355", strict=True))
    again = tmp_path / "again.png"
    assert main([*draw, "-o", str(again)]) == 0
    assert again.read_bytes() == grid.read_bytes()
    assert main([*draw, "--each", str(single), "--seed", "1"]) == BAD_INPUT
    assert "holds pictures already" in capsys.readouterr().err
    assert main([*draw, "--each", str(real), "--seed", "1"]) == 0
    with Image.open(single / names[0]) as one, Image.open(real / names[0]) as other:
        assert one.mode == "L" and one.size == (8, 8) and one.tobytes() != other.tobytes()
    judged = ["evaluate", str(real), str(single), "-o", str(tmp_path / "report"), "--captions", str(captions)]
    assert main(judged) == 0
    record = json.loads((tmp_path / "report/results.json").read_text())
    assert record["candidates"][0]["measurements"]["fd-digits-cnn"]["value"] > 0


@pytest.mark.parametrize("stage", ["gathered", "judge", "side_by_side"])
def test_a_run_stopped_in_any_stage_says_that_it_goes_on(
    stage: str, dit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "recovers.yaml", tmp_path / "pruned"
    path.write_text(RECIPE.format(model=dit) + "recovery: {steps: 1, batch_size: 2}\n")

    def strike(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"diffusion.prune.{stage}", strike)
        assert main(["diffusion", "prune", str(path), "-o", str(output)]) == INTERRUPTED
    assert f"what is finished is in {output / 'stages'}; the same command goes on" in capsys.readouterr().err
    assert main(["diffusion", "prune", str(path), "-o", str(output)]) == 0


def test_info_counts_units(dit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diffusion", "info", str(dit), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["component"] == "transformer" and not found["pruned"]
    assert found["units"]["heads"]["units"] == 8 and "channels" not in found["units"]
    assert main(["diffusion", "info", str(dit)]) == 0
    assert "feed-forwards" in capsys.readouterr().out


@pytest.mark.skipif(not is_gloo_available(), reason="torch has no gloo")
def test_patches_say_how_far_they_are_from_one_process(dit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["diffusion", "patches", str(dit), "--steps", "3", "--samples", "2", "--warmup", "1", "2", "5"]
    assert main([*shared, "--json"]) == 0
    together, one, one_half, two, two_half = json.loads(capsys.readouterr().out)["rows"]
    assert together["warmup"] is None and together["overlapped_bytes"] == 0 and together["largest_error"] < 1e-5
    assert one["relative_error"] > 1e-4 and one_half["context"] == 0.5
    assert one["waited_bytes"] < two["waited_bytes"] < together["waited_bytes"]
    assert one_half["attention_bytes"] < one["attention_bytes"] == together["attention_bytes"]
    assert two_half["waited_bytes"] == two["waited_bytes"]
    assert main(["diffusion", "patches", str(dit), "--steps", "2", "--samples", "1", "--warmup", "1"]) == 0
    assert "2 processes, 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prune", "absent.yaml"], "absent.yaml: no such file"),
        (["info", "absent"], "absent: no folder, and none of the demo models"),
        (["generate", "absent", "--prompt", "3", "-o", "x.png"], "absent: no folder"),
        (["prune"], "missing"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diffusion", *arguments]) == BAD_INPUT
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said


def test_a_class_that_is_not_there_is_named(dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["diffusion", "generate", str(dit), "--prompt", "cat", "-o", str(tmp_path / "x.png")]
    assert main(arguments) == BAD_INPUT
    assert "'cat' is no class: they are 0 to 9" in capsys.readouterr().err
