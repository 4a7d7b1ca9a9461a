"""The commands of meshes, from arguments to files and exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress3d.mesh.files import read_mesh, write_mesh
from compress3d.mesh.mesh import Mesh
from compress3d.mesh.shapes import icosphere, joined, torus
from compress3d.mesh.silhouette import silhouettes
from secateur.cli import main
from tests.compress3d.mesh.views import ring_of_cameras

SIZE = 48


def write_capture(folder: Path, mesh: Mesh, mode: str = "RGBA") -> None:
    """A NeRF-synthetic capture whose alpha is the mesh's silhouette."""
    cameras = ring_of_cameras(8, size=SIZE)
    drawn = (silhouettes(mesh, cameras) * 255).byte().numpy()
    frames = []
    for index, alpha in enumerate(drawn):
        pixels = np.dstack([np.full((SIZE, SIZE, 3), 90, np.uint8), alpha])
        Image.fromarray(pixels).convert(mode).save(folder / f"r_{index}.png")
        pose = torch.linalg.inv(cameras.viewmats[index].double()) @ torch.diag(torch.tensor([1.0, -1, -1, 1]).double())
        frames.append({"file_path": f"./r_{index}", "transform_matrix": pose.tolist()})
    angle = 2 * math.atan(0.5 * SIZE / float(cameras.Ks[0, 0, 0]))
    for part, chosen in (("train", frames[2:]), ("test", frames[:2])):
        (folder / f"transforms_{part}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": chosen}))


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    folder = tmp_path / "capture"
    folder.mkdir()
    write_capture(folder, torus())
    ball = icosphere(1, 0.1)
    write_mesh(joined(torus(), ball.with_vertices(ball.vertices + torch.tensor([0.0, 0, 0.9]))), tmp_path / "in.ply")
    return folder


def test_prune_removes_the_floater_and_says_so(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(tmp_path / "in.ply"), tmp_path / "out" / "small.ply"
    assert main(["mesh", "prune", source, str(capture), "-o", str(target), "--threshold", "0.1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["removed"]["outside"] == 80 and record["held_out"]
    assert record["pruned"]["shape"]["genus"] == 1 and record["pruned"]["shape"]["components"] == 1
    assert record["iou"][1] > record["iou"][0]
    assert len(read_mesh(target)) == 2304
    assert main(["mesh", "info", str(target)]) == 0
    assert "2,304" in capsys.readouterr().out


def test_a_count_of_faces_is_kept_exactly(capture: Path, tmp_path: Path) -> None:
    arguments = ["mesh", "prune", str(tmp_path / "in.ply"), str(capture), "-o", str(tmp_path / "some.ply")]
    assert main([*arguments, "--keep", "2000", "--stray", "0"]) == 0
    assert len(read_mesh(tmp_path / "some.ply")) == 2000


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep", "0"], "not a count to keep"),
        (["--sigma", "-1"], "not a softness"),
        (["--threshold", "2"], "not a number from 0 to 1"),
        (["-o", "small.glb"], "no format of meshes has this suffix"),
    ],
)
def test_bad_arguments_are_one_line(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    output = [] if "-o" in flags else ["-o", str(tmp_path / "small.ply")]
    assert main(["mesh", "prune", str(tmp_path / "in.ply"), str(capture), *output, *flags]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_photographs_without_alpha_are_refused(
    capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_capture(capture, torus(), mode="RGB")
    arguments = ["mesh", "prune", str(tmp_path / "in.ply"), str(capture), "-o", str(tmp_path / "small.ply")]
    assert main(arguments) == 2
    assert "has no alpha" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "small.ply").exists()


def test_a_file_that_is_no_mesh_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.ply").write_text("hello")
    assert main(["mesh", "info", str(tmp_path / "no.ply")]) == 2
    assert "not a PLY file" in " ".join(capsys.readouterr().err.split())
