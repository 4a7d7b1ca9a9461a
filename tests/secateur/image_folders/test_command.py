import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

import secateur.cli
from secateur.cli import BAD_INPUT, main
from secateur.image_folders import evaluate as evaluating
from secateur.image_folders.commands import IMAGES_EVALUATOR
from tests.secateur.image_folders.pictures import write_pictures


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("folders")
    return str(write_pictures(root / "real", 9)), str(write_pictures(root / "made", 9, noise=9))


@pytest.fixture(autouse=True)
def only_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands import what takes seconds."""
    all_points = entry_points

    def found(group: str) -> list[object]:
        return [entry for entry in all_points(group=group) if entry.value.startswith("secateur.")]

    monkeypatch.setattr(secateur.cli, "entry_points", found)


def test_weights_that_cannot_be_fetched_are_one_line(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert main(["evaluate", *folders, "-o", str(tmp_path / "report"), "--inception", "download"]) == BAD_INPUT
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith("secateur: error: Inception's weights cannot be downloaded from https://")
        and "no network" in last
    )


def test_a_page_and_a_record_are_written_and_nothing_else(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    assert main(["evaluate", *folders, "-o", str(output), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    assert "PSNR" in printed.out and "FD-fashion-cnn" in printed.out
    assert "not measured: FID: give --inception FILE" in printed.err
    assert sorted(entry.name for entry in output.iterdir()) == ["index.html", "results.json"]
    record = json.loads((output / "results.json").read_text())
    assert record["kind"] == "images" and record["runs"][0]["command"].startswith("secateur evaluate ")
    page = (output / "index.html").read_text()
    assert "Samples" in page and "Real against real" in page
    assert main(["evaluate", *folders, "-o", str(tmp_path / "again"), "--compare", str(output), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {change["verdict"] for change in again["comparison"]["changes"]} == {"within noise"}
    same = [[one["measurements"] for one in [run["reference"], *run["candidates"]]] for run in (record, again)]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{real}", "{empty}", "-o", "{out}"], ["empty: no images in it"]),
        (["{real}", "{file}", "-o", "{out}"], ["000.png: no folder of images"]),
        (["{real}", "{made}", "-o", "{out}", "--workers", "-1"], ["--workers", "'-1'", "from 0 to 256"]),
        (["{real}", "{made}", "-o", "{out}", "--features", "inception"], ["--features inception", "digits-cnn"]),
        (["{real}", "{made}", "-o", "{out}", "--inception", "no.pth"], ["no.pth", "https://"]),
        (["{real}", "{made}", "-o", "{out}", "--clip", "nowhere"], ["nowhere: no config.json"]),
        (["{real}", "{made}", "-o", "{out}", "--lpips", "no.pth"], ["no.pth", "https://"]),
        (["{real}", "{made}", "-o", "{out}", "--captions", "no.json"], ["no.json: no such file"]),
        (["{real}", "{broken}", "-o", "{out}"], ["broken/004.png: a damaged image"]),
        (["{real}", "{broken}", "-o", "{out}", "--workers", "1"], ["broken/004.png: a damaged image"]),
    ],
)
def test_mistakes_take_one_line(
    arguments: list[str],
    words: list[str],
    folders: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    broken = write_pictures(tmp_path / "broken", 9)
    (broken / "004.png").write_bytes((broken / "004.png").read_bytes()[:70])
    real, made = folders
    named = {"real": real, "made": made, "empty": tmp_path / "empty", "broken": broken, "out": tmp_path / "out"}
    assert main(["evaluate", *(one.format(**named, file=f"{real}/000.png") for one in arguments)]) == 2
    printed = capsys.readouterr()
    said = printed.err.strip().splitlines()[-1]
    assert said.startswith("secateur: error: ") and all(word in said for word in words)
    assert printed.err.count("secateur: error: ") == 1 and "Traceback" not in printed.err
    assert not (tmp_path / "out" / "results.json").exists()


def test_ctrl_c_says_where_finished_images_are(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluating, "look_at_pairs", interrupted)
        assert main(["evaluate", *folders, "-o", str(tmp_path)]) == 130
    assert f"what is finished is in {tmp_path / 'unfinished'}" in capsys.readouterr().err
    assert len(list((tmp_path / "unfinished").rglob("*.safetensors"))) == 2
    assert main(["evaluate", *folders, "-o", str(tmp_path)]) == 0
    assert not (tmp_path / "unfinished").exists()


def test_other_kinds_are_asked_before_images(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "secateur.image_folders.commands:IMAGES_EVALUATOR"
    group = "secateur.evaluators"
    entries = [EntryPoint("images", value, group), EntryPoint("scenes", "pathlib:Path", group)]
    monkeypatch.setattr(secateur.cli, "entry_points", lambda group: entries)
    found = secateur.cli._load_all(group)
    assert list(found) == ["scenes", "images"] and found["images"] is IMAGES_EVALUATOR
