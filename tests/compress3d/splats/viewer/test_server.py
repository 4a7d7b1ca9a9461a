import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compress3d.splats.evaluate import SceneFile
from compress3d.splats.formats import write_scene
from compress3d.splats.scene import SplatScene
from compress3d.splats.viewer.arrays import base_colours
from compress3d.splats.viewer.server import Shown, SplatViewer, free_port
from secateur.cli import main
from tests.compress3d.splats.viewer.balls import scene, views

pytest.importorskip("viser", reason="viser is not installed: pip install viser")


def shown(one: SplatScene) -> Shown:
    return Shown(SceneFile.in_memory(one), one)


@pytest.fixture
def viewer():
    one = SplatViewer(shown(scene(300)), shown(scene(100)), views(), port=0)
    yield one
    one.close()


def test_the_slider_shows_what_would_go(viewer: SplatViewer) -> None:
    assert viewer.wait(60)
    node = viewer.server.scene.get_handle_by_name("/scene")
    whole = node.rgbs / 255
    np.testing.assert_allclose(whole, base_colours(scene(300)), atol=1 / 255)
    viewer.panel.keep.value = 10.0
    assert viewer.wait(60)
    changed = (np.abs(node.rgbs / 255 - whole).max(axis=1) > 1 / 255).sum()
    assert 260 <= changed <= 270
    viewer.panel.gone.value = "hidden"
    assert viewer.wait(60)
    assert (node.opacities[:, 0] > 0).sum() == 30
    assert "30</b> stay" in viewer.panel._budget.content


def test_a_twin_is_shown_alone_beside_or_by_its_errors(viewer: SplatViewer) -> None:
    scenes = [viewer.server.scene.get_handle_by_name(name) for name in ("/scene", "/twin")]
    for layout, visible in (("scene", [True, False]), ("twin", [False, True]), ("side by side", [True, True])):
        viewer.panel.show.value = layout
        assert viewer.wait(60)
        assert [node.visible for node in scenes] == visible
        assert (np.linalg.norm(scenes[1].position) > 1) == (layout == "side by side")
    viewer.panel.colour_by.value = "error against the twin"
    viewer.panel.of_attribute.value = "position"
    assert viewer.wait(60)
    assert "world units" in viewer.panel._legend.content and viewer.panel._legend.visible


def test_a_failure_in_the_background_is_told(viewer: SplatViewer, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no <views>")

    monkeypatch.setattr(viewer._scorer, "scores", fails)
    viewer.panel.keep.value = 50.0
    assert viewer.wait(60)
    assert viewer.panel._status.visible and "ValueError: no &lt;views&gt;" in viewer.panel._status.content


def test_a_scene_that_is_too_large_is_capped() -> None:
    assert len(shown(scene(300)).capped(100).scene) == 100
    assert shown(scene(300)).capped(100).file.gaussians == 300
    one = shown(scene(300))
    assert one.capped(300) is one


def test_a_port_that_is_taken_gives_the_next() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) <= port + 100
    with pytest.raises(ValueError, match=r"cannot listen on 203\.0\.113\.7, port 8080"):
        free_port("203.0.113.7", 8080)


def test_bad_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(scene(50), tmp_path / "ball.ply")
    ball = str(tmp_path / "ball.ply")
    for arguments, words in (
        ([str(tmp_path / "absent.ply")], "absent.ply"),
        ([ball, "--port", "70000"], "0 (any) to 65535"),
        ([ball, "--max-gaussians", "none"], "whole number"),
        ([ball, "--against", str(tmp_path / "other.ply")], "other.ply"),
        ([ball, "--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
    ):
        assert main(["splat", "view", *arguments, "--no-open"]) == 2
        assert words in capsys.readouterr().err


def test_without_viser_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(scene(50), tmp_path / "ball.ply")
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(["splat", "view", str(tmp_path / "ball.ply"), "--no-open"]) == 2
    assert "pip install 'secateur[viewer]'" in capsys.readouterr().err


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    write_scene(scene(50), tmp_path / "ball.ply")
    code = "import sys; from secateur.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["splat", "view", "ball.ply", "--no-open", "--port", "0", "--max-gaussians", "20", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    said = process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "20 most visible" in said and "http://127.0.0.1:" in said and "Traceback" not in errors
    record = json.loads(out)
    assert record["files"][0]["gaussians"] == 50 and record["url"] in said
