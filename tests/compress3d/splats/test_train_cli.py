import json
import os
import signal
from pathlib import Path

import pytest
import torch

from compress3d.splats.formats import read_scene
from compress3d.splats.train import SplatTraining
from scripts.train_splats import main as train_splats
from secateur.cli import main
from tests.compress3d.splats.photographed import write_capture
from tests.secateur.evaluation.runs import checked_run, merge_compare_and_list

QUICK = "splat train capture -o scene.ply --sh-degree 0 --max-gaussians 50 --device cpu"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a capture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SECATEUR_DEBUG", raising=False)
    write_capture(tmp_path / "capture")
    return tmp_path


def run(line: str) -> int:
    return main(line.split())


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    capsys.readouterr()
    assert run(line) == 2
    message = capsys.readouterr().err.splitlines()
    return message[-1]


def test_trains_judges_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{QUICK} --steps 30 --report report --json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["quality"]["reference"] == "photographs" and len(made["quality"]["psnr"]) == 2
    assert made["scene"]["gaussians"] == len(read_scene(folder / "scene.ply")) == 50
    assert made["scene"]["bytes"] == (folder / "scene.ply").stat().st_size
    assert made["fit"]["steps"] == 30 and made["watched"] and made["machine"]["cores"]
    record = checked_run(folder / "report")
    assert record.candidates[0].measurements["psnr"].value == pytest.approx(made["quality"]["mean_psnr"])
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "000.png" in page and "Photograph" in page and str(folder) not in page


def test_the_record_of_a_training_is_the_shared_one(folder: Path) -> None:
    line = f"{QUICK} --steps 3 --report runs"
    assert run(f"{line}/one") == run(f"{line}/two --density mcmc --seed 1") == 0
    merged = merge_compare_and_list(folder / "runs" / "one", folder / "runs" / "two", folder / "both")
    assert merged.reference.name == merged.protocol["capture"] == "capture" and not merged.reference.measurements
    one, other = merged.candidates
    assert one.name.endswith("one: scene.ply") and other.name.endswith("two: scene.ply")
    assert one.parts["views"].rows == ("000.png", "008.png") and one.measurements["psnr"].samples == 2
    assert one.details["fit"]["steps"] == 3 and "seconds" not in one.details["fit"]
    assert [made.seeds for made in merged.runs] == [{"training": 0}, {"training": 1}]
    assert merged.pairs and other.run == 1


def test_shows_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"{QUICK} --steps 3 --density mcmc --keep 20 --long-side 20") == 0
    shown = capsys.readouterr().out
    assert "test photographs at 20x20" in shown and "Gaussians" in shown and " 20" in shown


def test_writes_other_formats(folder: Path) -> None:
    assert run(f"{QUICK.replace('.ply', '.spz')} --steps 2 --prune sundae --keep 50%") == 0
    assert read_scene(folder / "scene.spz").sh_degree == 0
    assert run(f"{QUICK} --steps 2 --prune radsplat --antialiased") == 0


def test_goes_on_after_ctrl_c(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step_before = SplatTraining.training_step

    def step(self: SplatTraining, batch: torch.Tensor, step: int) -> torch.Tensor:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step_before(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(SplatTraining, "training_step", step)
        assert run(f"{QUICK} --steps 9") == 130
        assert "--checkpoint FILE would have kept" in capsys.readouterr().err
        assert run(f"{QUICK} --steps 9 --checkpoint run.ckpt") == 130
        assert "stopped after step 5 of 9, saved in run.ckpt" in capsys.readouterr().err
    assert not (folder / "scene.ply").exists()
    assert run(f"{QUICK} --steps 9 --checkpoint run.ckpt --resume") == 0
    resumed = (folder / "scene.ply").read_bytes()
    assert run(f"{QUICK} --steps 9") == 0
    assert (folder / "scene.ply").read_bytes() == resumed


def test_says_what_is_wrong_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such capture" in refused(capsys, "splat train nowhere -o scene.ply")
    assert "no format of splat scenes" in refused(capsys, "splat train capture -o scene.txt")
    assert "capture/000.png" in refused(capsys, "splat train capture -o capture/000.png/scene.ply")
    assert "not a whole number" in refused(capsys, f"{QUICK} --steps 0")
    assert "--checkpoint FILE" in refused(capsys, f"{QUICK} --resume")
    assert "no --keep" in refused(capsys, f"{QUICK} --prune radsplat --keep 5")
    assert "SUNDAE keeps a share" in refused(capsys, f"{QUICK} --prune sundae --keep 500")
    assert "must be above 0%" in refused(capsys, f"{QUICK} --keep 0%")
    (folder / "capture" / "003.png").unlink()
    assert "1 of the 16 photographs listed are missing" in refused(capsys, f"{QUICK} --strict")
    if not torch.cuda.is_available():
        assert "finds no CUDA device" in refused(capsys, f"{QUICK.replace('cpu', 'cuda')} --steps 1")


def test_the_script(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_splats(folder / "capture", folder / "scene.ply", 2)
    assert "against 2 photographs" in capsys.readouterr().out and (folder / "scene.ply").exists()
