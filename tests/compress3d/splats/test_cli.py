import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress3d.splats.budget import Budget
from compress3d.splats.compress import Compressor
from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.formats.axes import reframe
from compress3d.splats.rasterize import render
from compress3d.splats.views import orbit, sample_views
from scripts.compress_splat import main as compress_splat
from secateur.cli import main
from secateur.console import Report
from secateur.evaluation.run import hash_path
from tests.compress3d.splats.test_evaluate import scene as ball
from tests.secateur.evaluation.runs import checked_run, merge_compare_and_list


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a scene and cameras for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    monkeypatch.setattr("compress3d.splats.report._LONGER_SIDE", 80)
    for name, number in (("VIEWS", 8), ("TEACHING_VIEWS", 4), ("VALIDATION_VIEWS", 1)):
        monkeypatch.setattr(sys.modules["compress3d.splats.compress"], name, number)
    monkeypatch.setattr("compress3d.splats.cli.RECOVERY", 4)
    write_scene(ball(400), tmp_path / "ball.ply")
    cameras = sample_views(ball(400), 4, 40, 32)
    (tmp_path / "cameras.json").write_text(json.dumps(cameras.to_json()))
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def record(capsys: pytest.CaptureFixture[str], line: str) -> dict:
    capsys.readouterr()
    assert run(f"{line} --json") == 0
    return json.loads(capsys.readouterr().out)


def test_info(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splat info ball.ply") == 0
    assert "400" in capsys.readouterr().out
    info = record(capsys, "splat info ball.ply")
    assert info["file"]["gaussians"] == 400
    assert info["file"]["bytes"] == (folder / "ball.ply").stat().st_size
    assert all(low < high for low, high in zip(info["low"], info["high"], strict=True))


def test_info_counts_what_cannot_be_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = ball(10)
    broken.means[3] = float("nan")
    write_scene(broken, folder / "broken.ply")
    info = record(capsys, "splat info broken.ply")
    assert info["file"]["gaussians"] == 10 and sum(info["invalid"].values()) == 1


def test_compress_to_a_share(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(capsys, "splat compress ball.ply -o small.spz --keep 25% --cameras cameras.json --report report")
    assert made["compressed"]["gaussians"] == len(read_scene(folder / "small.spz")) == 100
    assert made["original"]["name"] == "ball.ply" and made["options"]["judged_on_views"] == 2
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "ball.ply" in page and str(folder) not in page and "scene.html" not in page


def test_the_record_of_compressions_is_the_shared_one(folder: Path) -> None:
    line = "splat compress ball.ply -o small.spz --cameras cameras.json"
    assert run(f"{line} --keep 50%,25% --report runs/one") == 0
    assert run(f"{line} --keep 10% --recover 0 --report runs/two --report-3d") == 0
    merged = merge_compare_and_list(folder / "runs" / "one", folder / "runs" / "two", folder / "both")
    half, quarter, tenth = merged.candidates
    assert (half.name, half.path, tenth.run) == ("keep 50%", "small-50pct.spz", 1)
    assert half.measurements["gaussians"].value == 200 and half.measurements["psnr"].samples == 2
    assert merged.reference.path == "ball.ply" and merged.reference.sha256 == hash_path(folder / "ball.ply")
    assert merged.protocol["compared_with"] == "the original's own renders" and len(merged.pairs) == 6
    first = checked_run(folder / "runs" / "one")
    assert first.runs[0].seeds == {"views": 0} and "keep 25%: judge" in first.runs[0].seconds
    assert first.details["options"]["recover"]["steps"] == 4 and quarter.details["budget"]["keep"] == 0.25
    assert quarter.details["recovery"][0]["losses"] and not tenth.details["recovery"]
    assert len(quarter.details["before_rounding"]["psnr"]) == 2
    page = folder / "runs" / "two" / "index.html"
    assert '<a href="./scene.html">' in page.read_text(encoding="utf-8") and (page.parent / "scene.html").is_file()


def test_compress_to_several_shares_writes_one_file_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "splat compress ball.ply -o small.compressed.ply --keep 50%,100 --cameras cameras.json --report report"
    assert run(line) == 0
    assert len(read_scene(folder / "small-50pct.compressed.ply")) == 200
    assert len(read_scene(folder / "small-100.compressed.ply")) == 100
    assert not (folder / "small.compressed.ply").exists()
    assert len(checked_run(folder / "report").candidates) == 2
    assert "PSNR over file size" in (folder / "report" / "index.html").read_text(encoding="utf-8")


def test_compress_to_a_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(capsys, "splat compress ball.ply -o small.ply --size 10kB --cameras cameras.json")
    assert 9_700 <= made["compressed"]["bytes"] == (folder / "small.ply").stat().st_size <= 10_000


def test_compress_to_a_quality(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(capsys, "splat compress ball.ply -o small.spz --psnr 22 --cameras cameras.json")
    assert made["quality"]["mean_psnr"] >= 22 and made["compressed"]["gaussians"] < 400


def test_compress_by_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "recipe.yaml").write_text("keep: 0.5\nsh_degree: 0\ncameras: cameras.json\n")
    made = record(capsys, "splat compress ball.ply -o small.ply --config recipe.yaml")
    assert made["compressed"]["gaussians"] == 200
    (folder / "list.yaml").write_text("keep: [50%, 25%]\ncameras: cameras.json\n")
    assert run("splat compress ball.ply -o small.ply --config list.yaml") == 0
    assert len(read_scene(folder / "small-25pct.ply")) == 100


def test_compress_to_some_harmonics(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = 0.1 * torch.randn(400, 8, 3, generator=torch.Generator().manual_seed(2))
    write_scene(ball(400).with_tensors(shN=colours), folder / "shiny.ply")
    options = "--cameras cameras.json --recover 0"
    made = record(capsys, f"splat compress shiny.ply -o small.ply --sh-keep 25% {options}")
    shN = read_scene(folder / "small.ply").shN
    assert made["options"]["sh_keep"] == 0.25 and 0.24 < float(shN.ne(0).float().mean()) <= 0.25
    made = record(capsys, f"splat compress shiny.ply -o small.ply --keep 50% --sh-degree auto {options}")
    assert made["options"]["sh_degree"] == "auto"


def test_convert(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(capsys, "splat convert ball.ply ball.splat")
    assert made["converted"]["gaussians"] == 400
    assert made["converted"]["bytes"] == (folder / "ball.splat").stat().st_size == 400 * 32
    assert run("splat convert ball.splat again.ply") == 0
    assert "400" in capsys.readouterr().out


def test_axes_of_an_spz_file_that_does_not_say_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = ball(400)
    # A tool that copies the coordinates of a PLY, and declares nothing.
    write_scene(reframe(scene, "RUB", "RDF"), folder / "unturned.spz")
    turned = record(capsys, "splat info unturned.spz --spz-axes rdf")
    as_it_is = record(capsys, "splat info unturned.spz")
    assert turned["low"] == pytest.approx(record(capsys, "splat info ball.ply")["low"], abs=0.01)
    assert as_it_is["low"][1] == pytest.approx(-turned["high"][1])
    assert run("splat convert unturned.spz right.spz --spz-axes RDF") == 0
    assert record(capsys, "splat info right.spz")["low"] == pytest.approx(turned["low"])
    assert run("splat render unturned.spz -o a.png --spz-axes RDF --width 24 --camera cameras.json") == 0
    assert run("splat render right.spz -o b.png --width 24 --camera cameras.json") == 0
    assert (folder / "a-000.png").read_bytes() == (folder / "b-000.png").read_bytes()
    line = "splat compress unturned.spz -o small.ply --keep 390 --spz-axes RDF --cameras cameras.json"
    assert run(line) == 0
    assert record(capsys, "splat info small.ply")["low"] == pytest.approx(turned["low"], abs=0.2)


def test_axes_of_an_spz_file_to_write(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(capsys, "splat convert ball.ply unturned.spz --spz-axes RDF")
    assert made["converted"]["gaussians"] == 400
    scene, original = read_scene(folder / "unturned.spz"), record(capsys, "splat info ball.ply")
    assert record(capsys, "splat info unturned.spz")["low"] == pytest.approx(original["low"], abs=0.01)
    # One who believes the specification and ignores what the file declares sees it upside down.
    ignoring = read_scene(folder / "unturned.spz", spz_axes="RUB")
    torch.testing.assert_close(ignoring.means, scene.means * torch.tensor([1.0, -1.0, -1.0]))


def test_render(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splat render ball.ply -o one.png --width 60 --height 40") == 0
    image = Image.open(folder / "one.png")
    assert image.size == (60, 40)
    assert np.asarray(image)[0, 0].tolist() == [255, 255, 255] and np.asarray(image).std() > 5
    assert record(capsys, "splat render ball.ply -o turn.webp --orbit 3 --width 24") == [
        "turn-000.webp",
        "turn-001.webp",
        "turn-002.webp",
    ]
    assert run("splat render ball.ply -o view.png --camera cameras.json --width 80") == 0
    assert Image.open(folder / "view-003.png").size == (80, 64)


def test_up_is_where_the_user_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splat render ball.ply -o up.png --up=z --width 24") == 0
    expected = render(read_scene(folder / "ball.ply"), orbit(read_scene(folder / "ball.ply"), 1, 24, 24, up=(0, 0, 1)))
    drawn = torch.from_numpy(np.asarray(Image.open(folder / "up.png")).astype(np.float32)) / 255
    assert (drawn - expected[0].clamp(0, 1)).abs().max() <= 1 / 255
    compressed = record(capsys, "splat compress ball.ply -o up.spz --up=z --keep 50% --recover 0")
    assert compressed["options"]["up"] == [0, 0, 1]
    evaluated = record(capsys, "evaluate ball.ply up.spz -o report --up=z --views 2")
    assert evaluated["protocol"]["views_up"] == [0, 0, 1] and evaluated["protocol"]["views"] == 2


def test_the_script_does_as_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compress_splat(folder / "ball.ply", folder / "small.spz", "25%")
    assert len(read_scene(folder / "small.spz")) == 100
    assert "400 -> 100" in capsys.readouterr().out


def test_options_can_be_printed_as_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("splat compress ball.ply -o a.ply --keep 50%,25% --sh-degree 1 --print-config") == 0
    (folder / "recipe.yaml").write_text(capsys.readouterr().out)
    assert run("splat compress --config recipe.yaml") == 0
    assert len(read_scene(folder / "a-25pct.ply")) == 100


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(ball(400).select(torch.arange(350)), folder / "less.ply")
    line = "evaluate ball.ply less.ply ball.ply -o report --cameras cameras.json"
    made = record(capsys, line)
    less, same = made["candidates"]
    psnr, ssim = (same["measurements"][name] for name in ("psnr", "ssim"))
    assert less["measurements"]["psnr"]["value"] > 10 and psnr["value"] is None and psnr["infinite"]
    assert ssim["value"] == pytest.approx(1)
    assert [one["name"] for one in made["candidates"]] == ["less.ply", "ball.ply (candidate)"]
    assert made["runs"][0]["command"] == f"secateur {line} --json"
    assert {path.name for path in (folder / "report").iterdir()} == {"index.html", "results.json"}
    assert run("evaluate ball.ply less.ply -o report --cameras cameras.json") == 0
    assert "less.ply" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("splat info gone.ply", ["gone.ply", "no such file"]),
        ("splat info cut.ply", ["cut.ply"]),
        ("splat info cameras.json", ["cameras.json", "not a splat scene"]),
        ("splat compress gone.ply -o a.ply", ["gone.ply", "no such file"]),
        ("splat compress ball.ply -o a.ply --keep 25x", ["--keep", "25x"]),
        ("splat compress ball.ply -o a.ply --keep 0%", ["--keep", "0%"]),
        ("splat compress ball.ply -o a.ply --keep 25% --size 2MB", ["--keep and --size"]),
        ("splat compress ball.ply -o a.ply --size 2", ["2 bytes are too few"]),
        ("splat compress ball.ply -o a.spz --psnr 150 --cameras cameras.json", ["150 dB cannot be held"]),
        ("splat compress ball.ply -o a.xyz --keep 25%", ["a.xyz", ".sog"]),
        ("splat compress ball.ply -o a.ksplat --keep 25%", ["a.ksplat", "only read"]),
        ("splat compress ball.ply -o ball.ply/a.ply --keep 25%", ["ball.ply/a.ply", "not a folder"]),
        ("splat compress ball.ply -o a.ply --cameras gone.json", ["gone.json", "no such file"]),
        ("splat compress ball.ply -o a.ply --cameras bad.json", ["bad.json", "viewmats"]),
        ("splat compress ball.ply -o a.ply --sh-degree 4", ["--sh-degree", "4"]),
        ("splat compress ball.ply -o a.ply --sh-keep 200", ["--sh-keep", "'200' is not a share"]),
        ("splat convert ball.ply a.ply --sh-degree auto", ["--sh-degree", "auto"]),
        ("splat convert ball.ply", ["missing: output"]),
        ("splat info ball.ply --spz-axes RDF", ["ball.ply", "not SPZ"]),
        ("splat info ball.ply --spz-axes XYZ", ["--spz-axes", "'XYZ'", "RDF"]),
        ("splat info ball.ply --spz-axes RDU", ["--spz-axes", "'RDU'"]),
        ("splat convert ball.ply a.sog --spz-axes RDF", ["neither ball.ply nor a.sog is SPZ"]),
        ("splat convert gone.spz a.sog --spz-axes RDF", ["gone.spz", "no such file"]),
        ("splat convert ball.ply a.spz --spz-axes DRF", ["a.spz", "RUB", "'DRF'"]),
        ("splat render ball.ply -o a.gif", ["a.gif", ".png"]),
        ("splat render ball.ply -o a.png --orbit 2 --camera cameras.json", ["--camera", "--orbit"]),
        ("splat render ball.ply -o a.png --orbit 0", ["--orbit", "0"]),
        ("splat render ball.ply -o a.png --width 0", ["--width", "0"]),
        ("splat render ball.ply -o a.png --up w", ["--up", "'w'"]),
        ("evaluate ball.ply gone.ply -o report", ["gone.ply", "no such file"]),
        ("evaluate cameras.json ball.ply -o report", ["cameras.json", "kinds are diffusion"]),
    ],
)
def test_mistakes_take_one_line_and_write_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
) -> None:
    (folder / "cut.ply").write_bytes((folder / "ball.ply").read_bytes()[:-100])
    (folder / "bad.json").write_text('{"width": 3}')
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(line) == 2
    printed = capsys.readouterr()
    messages = [text for text in printed.err.splitlines() if text.startswith("secateur: error: ")]
    assert printed.out == "" and len(messages) == 1 and "Traceback" not in printed.err
    assert all(word in messages[0] for word in words), messages[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_ctrl_c_while_compressing_leaves_nothing(folder: Path) -> None:
    write_scene(ball(60_000), folder / "large.ply")
    code = "import sys; from secateur.cli import main; sys.exit(main(sys.argv[1:]))"
    line = ["splat", "compress", "large.ply", "-o", "out.ply", "--keep", "50%,25%"]
    process = subprocess.Popen([sys.executable, "-c", code, *line], stderr=subprocess.PIPE, text=True, cwd=folder)
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "rendering" in first
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130, messages
    assert messages.splitlines()[-1] == "secateur: interrupted, nothing written"
    assert "Traceback" not in messages
    assert sorted(path.name for path in folder.iterdir()) == ["ball.ply", "cameras.json", "large.ply"]


def test_an_interruption_between_two_files_names_the_first(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compress = Compressor.compress

    def once(compressor: Compressor, budget: Budget, output: Path, report: Report) -> object:
        monkeypatch.setattr(Compressor, "compress", interrupted)
        return compress(compressor, budget, output, report)

    def interrupted(*arguments: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Compressor, "compress", once)
    assert run("splat compress ball.ply -o a.ply --keep 50%,25% --cameras cameras.json") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "secateur: interrupted, written before: a-50pct.ply"
    assert (folder / "a-50pct.ply").exists() and not (folder / "a-25pct.ply").exists()
