"""The viewer in a real browser: what it draws is looked at, not only what is sent."""

import io
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress3d.cameras import Cameras
from compress3d.splats.evaluate import SceneFile
from compress3d.splats.viewer.server import Shown, SplatViewer
from tests.compress3d.splats.viewer.balls import scene, views

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytest.importorskip("viser", reason="viser is not installed: pip install viser")

SECONDS = 120
_FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
# Left of the panel, below the notice that there is no GPU.
_PICTURE = {"x": 0, "y": 160, "width": 330, "height": 240}


@pytest.fixture(scope="module")
def viewer() -> Iterator[SplatViewer]:
    ball = scene(1500)
    one = SplatViewer(Shown(SceneFile.in_memory(ball), ball), cameras=views(), port=0)
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(viewer: SplatViewer) -> Iterator["playwright.Page"]:
    """The viewer's page, which may ask for nothing outside this machine."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium to open the viewer in")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=_FLAGS)
        opened = browser.new_page(viewport={"width": 700, "height": 420})
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(viewer.url)
        opened.wait_for_selector("canvas", timeout=1000 * SECONDS)
        yield opened
        own = (viewer.url, "data:", "blob:", viewer.url.replace("http", "ws"))
        assert [url for url in asked if not url.startswith(own)] == []
        browser.close()


def picture(page: "playwright.Page") -> np.ndarray:
    """(H, W, 3) levels of 255 of what is drawn."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=_PICTURE))).convert("RGB"), np.float32)


def drawn_until(page: "playwright.Page", good: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The picture once it is good and stays as it is."""
    end, last = time.monotonic() + SECONDS, picture(page)
    while time.monotonic() < end:
        page.wait_for_timeout(400)
        now = picture(page)
        if good(now) and np.abs(now - last).max() < 3:
            return now
        last = now
    raise AssertionError(f"no such picture in {SECONDS} s: its colours deviate by {last.std():.1f} levels")


def test_the_page_draws_the_scene_and_what_would_go(page: "playwright.Page", viewer: SplatViewer) -> None:
    whole = drawn_until(page, lambda image: float(image.std()) > 15)
    assert viewer.server.get_clients()
    viewer.panel.gone.value = "hidden"
    viewer.panel.keep.value = 10.0
    assert viewer.wait(SECONDS)
    tenth = drawn_until(page, lambda image: float(np.abs(image - whole).mean()) > 5)
    # Nine tenths are gone, so that the white behind them shows.
    assert tenth.mean() > whole.mean() and tenth.std() > 1
    viewer.panel.keep.value = 100.0
    assert viewer.wait(SECONDS)
    drawn_until(page, lambda image: float(np.abs(image - whole).mean()) < 1)


def test_a_recorded_view_is_a_camera_that_looks_at_the_scene(
    page: "playwright.Page", viewer: SplatViewer, tmp_path: Path
) -> None:
    drawn_until(page, lambda image: float(image.std()) > 15)
    client = next(iter(viewer.server.get_clients().values()))
    viewer.flying.record(client)
    with page.expect_download(timeout=1000 * SECONDS) as download:
        viewer.flying.save(client)
    download.value.save_as(tmp_path / "cameras.json")
    cameras = Cameras.load(tmp_path / "cameras.json")
    assert len(cameras) == 1 and json.loads((tmp_path / "cameras.json").read_text())["height"] > 1
    centre = cameras.viewmats[0, :3, :3] @ scene(1500).means.mean(dim=0) + cameras.viewmats[0, :3, 3]
    assert centre[2] > 1 and centre[:2].norm() < 0.3 * centre[2]
    viewer.flying.forget()


def test_playing_moves_the_camera(page: "playwright.Page", viewer: SplatViewer) -> None:
    client = next(iter(viewer.server.get_clients().values()))
    before = client.camera.position.copy()
    viewer.flying.toggle(client)
    end = time.monotonic() + SECONDS
    while np.linalg.norm(client.camera.position - before) < 0.2 and time.monotonic() < end:
        page.wait_for_timeout(200)
    viewer.flying.toggle(client)
    assert np.linalg.norm(client.camera.position - before) > 0.2
