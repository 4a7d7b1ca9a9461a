"""`secateur nerf`: what the commands write, and what they say when something is wrong."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from compress3d.nerf import cli, hollow_cli
from compress3d.nerf import compress as compress_module
from compress3d.nerf import report as report_module
from compress3d.nerf.commands import NERF
from compress3d.nerf.files import load_field, save_field
from compress3d.nerf.hollow_cli import HollowedField
from compress3d.nerf.hollow_training import Hollowing, HollowRecord
from compress3d.splats.evaluate import Quality
from secateur.cli import main
from secateur.evaluation.run import hash_path
from secateur.metrics.speed import Speed
from secateur.report.record import describe_machine, to_json
from secateur.training import FitRecord
from tests.compress3d.nerf.fields import QUICK, some_field
from tests.compress3d.splats.photographed import around, write_capture
from tests.secateur.evaluation.runs import merge_compare_and_list


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that train in a second."""
    monkeypatch.setattr(cli, "Training", lambda **changed: QUICK)
    import secateur.cli

    monkeypatch.setattr(secateur.cli, "_load_all", lambda group: {"nerf": NERF} if group.endswith("commands") else {})


@pytest.mark.usefixtures("quick")
def test_a_capture_becomes_a_field_that_is_drawn_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture, field = write_capture(tmp_path / "blobs"), tmp_path / "out" / "field.safetensors"
    assert main(["nerf", "train", str(capture), "-o", str(field), "--steps", "30"]) == 0
    assert "rays/s" in capsys.readouterr().out
    assert main(["nerf", "evaluate", str(field), str(capture), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"] == field.stat().st_size
    assert len(record["quality"]["psnr"]) == 2
    assert main(["nerf", "render", str(field), "-o", str(tmp_path / "view.png"), "--orbit", "2", "--width", "12"]) == 0
    names = [tmp_path / f"view-{index:03d}.png" for index in range(2)]
    assert capsys.readouterr().out.split() == [str(name) for name in names]
    assert Image.open(names[1]).size == (12, 12)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{capture}", "-o", "field.ply"], "written as .safetensors"),
        (["train", "{capture}", "-o", "field.safetensors", "--resume"], "say from which with --checkpoint"),
        (["train", "{capture}", "-o", "field.safetensors", "--steps", "0"], "not a whole number from 1 up"),
        (["train", "nowhere", "-o", "field.safetensors"], "nowhere: no such capture"),
        (["render", "nowhere.safetensors", "-o", "a.png"], "nowhere.safetensors: no such file"),
        (["render", "{field}", "-o", "a.txt"], "not a picture that can be written"),
        (["render", "{field}", "-o", "a.png", "--camera", "a.json", "--orbit", "2"], "not with both"),
        (["evaluate", "{capture}/000.png", "{capture}"], "000.png"),
        (["evaluate", "{field}"], "missing: CAPTURE"),
        (["points", "{field}", "-o", "points.txt"], "points are written as .ply"),
        (["points", "nowhere.safetensors", "-o", "points.ply"], "nowhere.safetensors: no such file"),
        (["compress", "{field}", "-o", "small.ply"], "written as .safetensors"),
        (["compress", "{field}", "-o", "a.safetensors", "--resume"], "say from which with --checkpoint"),
        (["compress", "{field}", "-o", "a.safetensors", "--report", "{field}"], "cannot be a folder"),
        (["evaluate", "{field}", "{capture}", "--report", "{field}"], "cannot be a folder"),
        (["hollow", "{capture}", "-o", "field.ply"], "written as .safetensors"),
        (["hollow", "{capture}", "-o", "a.safetensors", "--share", "0%"], "not a share to keep"),
        (["compress", "nowhere.safetensors", "-o", "a.safetensors"], "nowhere.safetensors: no such file"),
        (["compress", "{field}", "nowhere", "-o", "a.safetensors"], "nowhere: no such capture"),
        (["compress", "{field}", "-o", "a.safetensors", "--keep", "0%"], "not a share to keep"),
        (["compress", "{field}", "-o", "a.safetensors", "--bits", "12"], "not bits of an entry"),
        (["compress", "{field}", "{capture}", "-o", "a.safetensors", "--bits", "8,4"], "one for each of 4 levels"),
        (["compress", "{field}", "{capture}", "-o", "a.safetensors", "--levels", "5"], "levels must be 1 to 4"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture, field = write_capture(tmp_path / "blobs"), tmp_path / "field.safetensors"
    save_field(some_field(), field)
    given = [one.format(capture=capture, field=field) for one in arguments]
    assert main(["nerf", *given]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert message.lower() in error.lower()


@pytest.mark.usefixtures("quick")
def test_a_field_is_compressed_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture, field, small = (
        write_capture(tmp_path / "blobs"),
        tmp_path / "f.safetensors",
        tmp_path / "small.safetensors",
    )
    size = save_field(some_field(), field)
    arguments = ["nerf", "compress", str(field), str(capture), "-o", str(small), "--keep", "50%", "--bits", "8,8,6,4"]
    assert main([*arguments, "--recover", "2", "--levels", "4"]) == 0
    assert "test views (photographs)" in " ".join(capsys.readouterr().out.split())
    assert main([*arguments, "--recover", "0", "--worth", "visits", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"] == small.stat().st_size < size / 3
    assert record["rows"][1] == record["rows"][0] // 2 == len(load_field(small).table)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("by", ["photographs", "own renders"])
def test_a_compression_is_reported_on_a_page(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress_module, "_TEACHER_VIEWS", 8)
    monkeypatch.setattr(compress_module, "_TEACHER_SIZE", 16)
    monkeypatch.setattr(report_module, "_OWN_SIZE", 24)
    monkeypatch.setattr(cli, "compress", partial(compress_module.compress, training=QUICK))
    field, small, report = tmp_path / "f.safetensors", tmp_path / "small.safetensors", tmp_path / "report"
    save_field(some_field(), field)
    capture = [str(write_capture(tmp_path / "blobs"))] if by == "photographs" else []
    arguments = ["nerf", "compress", str(field), *capture, "-o", str(small), "--worth", "visits", "--recover", "2"]
    assert main([*arguments, "--report", str(report)]) == 0
    page = (report / "index.html").read_text()
    for said in ("Bytes by part of the file", "Rows stored by cells a side", "Quality by step", "Recovery"):
        assert said in page
    assert page.count('data-view="') == (2 if by == "photographs" else 6)
    assert main([*arguments, "--keep", "10%", "--report", str(tmp_path / "again")]) == 0
    merged = merge_compare_and_list(report, tmp_path / "again", tmp_path / "both")
    one, other = merged.candidates
    assert one.path == str(small) and merged.reference.sha256 == hash_path(field)
    assert other.measurements["size"].value == small.stat().st_size < (one.measurements["size"].value or 0)
    assert sum(value or 0 for value in other.parts["levels"].columns["stored_rows"].values) == (
        other.measurements["rows"].value
    )
    assert one.details["recovery"]["steps"] == 2 and merged.runs[1].seeds == {"compression": 0}
    assert one.measurements["psnr"].change is not None or by == "own renders"


@pytest.mark.usefixtures("quick")
def test_a_field_is_reported_beside_photographs(tmp_path: Path) -> None:
    capture, field, report = write_capture(tmp_path / "blobs"), tmp_path / "f.safetensors", tmp_path / "report"
    save_field(some_field(), field)
    assert main(["nerf", "evaluate", str(field), str(capture), "--report", str(report)]) == 0
    page = (report / "index.html").read_text()
    assert "beside 2 photographs of blobs" in page and "Photograph" in page
    assert main(["nerf", "evaluate", str(field), str(capture), "--report", str(tmp_path / "again")]) == 0
    merged = merge_compare_and_list(report, tmp_path / "again", tmp_path / "both", same=True)
    (one,) = merged.candidates
    assert merged.protocol["capture"] == merged.reference.name == "blobs" and one.measurements["psnr"].samples == 2


@pytest.mark.usefixtures("quick")
def test_a_hollow_field_is_trained_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hollow_cli, "Training", lambda **changed: QUICK)
    monkeypatch.setattr(hollow_cli, "Hollowing", partial(Hollowing, resolution=8))
    capture, field = write_capture(tmp_path / "blobs"), tmp_path / "field.safetensors"
    arguments = ["nerf", "hollow", str(capture), "-o", str(field), "--steps", "10", "--share", "50%"]
    assert main([*arguments, "--checkpoint", str(tmp_path / "run.ckpt"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["hollow"]["mean_saliency"] <= 0.5 * (1 + 1e-5)
    assert record["options"]["share"] == 0.5 and record["bytes"] == field.stat().st_size
    assert (tmp_path / "run-plain.ckpt").exists()
    before = field.read_bytes()
    assert main([*arguments, "--checkpoint", str(tmp_path / "run.ckpt"), "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "mean saliency" in shown and "cells that rays look into" in shown
    assert field.read_bytes() == before
    assert load_field(field).occupancy.share == pytest.approx(record["occupied"])


def test_what_became_hollow_is_a_table_in_a_notebook(tmp_path: Path) -> None:
    part = FitRecord(3, ((3, 0.25),), (), None, False, 1.0)
    record = HollowRecord(0.04, 0.1, (), part, part)
    page = record._repr_html_()
    assert page.startswith("<table>") and "<td>mean saliency</td>" in page and "0.0400" in page and "10.00%" in page
    quality = Quality("photographs", 24, 24, 20.0, 0.9, (20.0,), (0.9,))
    speed = Speed.of([2.0], frames=1, threads=1, load_average=None, first_call_ms=3.0, clock="host")
    whole = HollowedField("blobs", 10, 0.2, record, quality, speed, 0, {"train": 1.0}, describe_machine(), {}, {})
    assert "20.00 dB" in whole._repr_html_() and "mean saliency" in whole._repr_html_()


def test_a_camera_file_says_where_to_look_from(tmp_path: Path) -> None:
    field, cameras = tmp_path / "field.safetensors", tmp_path / "cameras.json"
    save_field(some_field(), field)
    cameras.write_text(json.dumps(around(1).to_json()))
    paths = cli.render_file(field, tmp_path / "view.png", cameras, None, "-y", None, 48)
    assert paths == [str(tmp_path / "view.png")]
    assert Image.open(paths[0]).size == (48, 48)


def test_a_stopped_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **options: object) -> None:
        raise KeyboardInterrupt("stopped after step 3 of 9, saved in run.ckpt")

    capture = write_capture(tmp_path / "blobs")
    monkeypatch.setattr(cli, "train", stop)
    for checkpoint, message in ((tmp_path / "run.ckpt", "--resume goes on"), (None, "would have kept")):
        with pytest.raises(KeyboardInterrupt, match=message):
            cli.train_capture(
                capture, tmp_path / "field.safetensors", 9, 8, 17, None, None, False, 0, checkpoint, False
            )


def test_an_evaluation_is_json(tmp_path: Path) -> None:
    capture, field = write_capture(tmp_path / "blobs", 8), tmp_path / "field.safetensors"
    save_field(some_field(), field)
    record = cli.evaluate_file(field, capture, None, None, False)
    assert json.loads(json.dumps(to_json(record)))["name"] == "field.safetensors"
    assert load_field(field).bytes < record.bytes


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "command",
    [
        ["train", "{capture}", "-o", "out.safetensors"],
        ["hollow", "{capture}", "-o", "out.safetensors"],
        ["compress", "{field}", "{capture}", "-o", "out.safetensors"],
        ["evaluate", "{field}", "{capture}"],
        ["render", "{field}", "-o", "out.png"],
        ["points", "{field}", "-o", "out.ply"],
    ],
)
def test_a_device_that_is_not_there_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_field(some_field(), tmp_path / "field.safetensors")
    paths = {"capture": str(tmp_path / "never read"), "field": str(tmp_path / "field.safetensors")}
    given = ["nerf", *(word.format(**paths) for word in command)]
    with monkeypatch.context() as without:
        without.setattr("torch.cuda.is_available", lambda: False)
        assert main([*given, "--device", "cuda"]) == 2
        assert "--device cuda: torch finds no CUDA device here" in capsys.readouterr().err
    assert main([*given, "--device", "tpu"]) == 2
    message = capsys.readouterr().err
    assert "--device tpu: choose cpu or cuda" in message and message.count("\n") == 1
