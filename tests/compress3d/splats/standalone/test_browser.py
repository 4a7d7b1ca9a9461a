"""The page in a real browser: its pictures are held against those of our own rasteriser."""

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compress3d.cameras import Cameras
from compress3d.splats.rasterize import render
from compress3d.splats.samples import chair
from compress3d.splats.scene import SplatScene
from compress3d.splats.standalone.page import PageScene, read_page, write_page
from compress3d.splats.viewer.arrays import most_visible
from compress3d.splats.views import orbit, sample_views
from tests.compress3d.splats.viewer.balls import scene as ball_scene
from tests.compress3d.splats.viewer.balls import with_harmonics

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

MILLISECONDS = 120_000
_FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_WIDTH, _HEIGHT = 160, 120


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium to open the page in")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=_FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def scenes() -> tuple[SplatScene, SplatScene]:
    """The chair's 6,000 most visible Gaussians, one of them moved far off, and half of these."""
    many = chair().with_sh_degree(0)
    many = many.select(most_visible(many, 6000))
    many.means[0] = torch.tensor([300.0, -100.0, 50.0])
    return many, many.select(most_visible(many, 3000)).with_tensors(antialiased=True)


class Opened:
    """A page that was opened from the disk, and what went wrong in it."""

    def __init__(self, browser: "playwright.Browser", path: Path, **options: object) -> None:
        self.problems: list[str] = []
        self.tab = browser.new_page(**{"viewport": {"width": 480, "height": 360}} | options)
        self.tab.set_default_timeout(MILLISECONDS)
        self.tab.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.tab.on("pageerror", lambda error: self.problems.append(str(error)))
        self.tab.on("request", lambda request: self.problems.append(request.url) if "://" in request.url[:8] else None)
        self.tab.goto(path.as_uri())
        self.tab.evaluate("secateur.ready")
        self.problems = [problem for problem in self.problems if not problem.startswith(("file:", "blob:"))]

    def picture(self, cameras: Cameras, index: int, scene: int) -> np.ndarray:
        """What the page draws through one of our cameras, on white, in levels of 255."""
        camera = {"width": cameras.width, "height": cameras.height}
        camera |= {"K": cameras.Ks[index].tolist(), "viewmat": cameras.viewmats[index].tolist()}
        return _decoded(self.tab.evaluate("([camera, scene]) => secateur.picture(camera, scene)", [camera, scene]))

    def seen(self) -> np.ndarray:
        """What is on the screen, once it stays."""
        last = self.screen()
        while True:
            self.tab.wait_for_timeout(300)
            now = self.screen()
            if np.array_equal(now, last):
                return now
            last = now

    def screen(self) -> np.ndarray:
        return _pixels(self.tab.screenshot())


@pytest.fixture(scope="module")
def page(
    browser: "playwright.Browser", scenes: tuple[SplatScene, SplatScene], tmp_path_factory: pytest.TempPathFactory
) -> Opened:
    path = tmp_path_factory.mktemp("page") / "chair & co.html"
    write_page(path, "Chair & co", [PageScene("original", scenes[0]), PageScene("half", scenes[1], "half of it")])
    return Opened(browser, path)


def test_pictures_are_those_of_our_own_rasteriser(page: Opened, scenes: tuple[SplatScene, SplatScene]) -> None:
    cameras = sample_views(scenes[0], 3, _WIDTH, _HEIGHT)
    for number, scene in enumerate(scenes):
        for index in range(len(cameras)):
            ours = 255 * render(scene, cameras[index])[0].clamp(0, 1).numpy()
            theirs = page.picture(cameras, index, number)
            assert ours.std() > 20 and theirs.shape == ours.shape
            assert np.abs(theirs - ours).mean() < 1.0
            # Eight bits of the canvas round each of the many layers of a pixel.
            assert np.quantile(np.abs(theirs - ours), 0.99) < 8
            middle = (slice(_HEIGHT // 2 - 8, _HEIGHT // 2 + 8), slice(_WIDTH // 2 - 8, _WIDTH // 2 + 8))
            assert np.abs(theirs[middle].mean(axis=(0, 1)) - ours[middle].mean(axis=(0, 1))).max() < 3


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_colours_change_with_the_direction(browser: "playwright.Browser", tmp_path: Path, degree: int) -> None:
    ball = with_harmonics(ball_scene(300), degree)
    # The canvas holds each layer's colour to 1, our own rasteriser the sum's: colours in the middle know nothing of it.
    ball = ball.with_tensors(sh0=0.3 * ball.sh0)
    page = Opened(browser, write_page(tmp_path / "ball.html", "Ball", [PageScene("ball", ball)]))
    cameras = sample_views(ball, 4, _WIDTH, _HEIGHT)
    plain = render(ball.with_sh_degree(degree - 1), cameras).clamp(0, 1).numpy()
    for index in range(len(cameras)):
        ours = 255 * render(ball, cameras[index])[0].clamp(0, 1).numpy()
        error = np.abs(page.picture(cameras, index, 0) - ours).mean()
        assert error < 0.2 * np.abs(ours - 255 * plain[index]).mean() and error < 1.0
    assert page.problems == []


def test_cameras_inside_the_scene_see_it_too(page: Opened, scenes: tuple[SplatScene, SplatScene]) -> None:
    near = orbit(scenes[0], 2, _WIDTH, _HEIGHT, distance=0.4)
    for index in range(2):
        ours = 255 * render(scenes[0], near[index])[0].clamp(0, 1).numpy()
        assert np.abs(page.picture(near, index, 0) - ours).mean() < 2.0


def test_the_page_shows_the_scene_at_once_and_turns_it(page: Opened) -> None:
    first = page.seen()
    assert first[60:280].std() > 20
    page.tab.mouse.move(240, 180)
    page.tab.mouse.down()
    page.tab.mouse.move(300, 190, steps=3)
    page.tab.mouse.up()
    turned = page.seen()
    assert np.abs(turned - first).mean() > 2
    page.tab.mouse.wheel(0, 300)
    smaller = page.seen()
    assert smaller[60:280].mean() > turned[60:280].mean()
    page.tab.get_by_role("button", name="Reset view").click()
    page.tab.mouse.move(5, 180)
    assert np.abs(page.seen() - first).mean() < 1


def test_keys_turn_move_and_zoom(page: Opened) -> None:
    page.tab.locator("canvas").focus()
    before = page.seen()
    for key in ("ArrowLeft", "Shift+ArrowUp", "-", "ArrowDown"):
        page.tab.keyboard.press(key)
        after = page.seen()
        assert np.abs(after - before).mean() > 0.3, key
        before = after
    page.tab.keyboard.press("r")


def test_buttons_choose_the_scene_and_the_background(page: Opened) -> None:
    tab = page.tab
    assert tab.get_by_role("button", name="half").get_attribute("aria-pressed") == "true"
    assert tab.locator("#note").inner_text() == "half of it"
    half = page.seen()
    tab.get_by_role("button", name="original").click()
    assert tab.locator("#note").inner_text() == "6,000 Gaussians"
    tab.mouse.move(5, 180)
    assert np.abs(page.seen() - half)[60:280].mean() > 0.5
    tab.keyboard.press("t")
    assert tab.get_by_role("button", name="half").get_attribute("aria-pressed") == "true"
    tab.get_by_role("button", name="Background").click()
    assert page.seen()[150, 5].mean() < 30
    tab.get_by_role("button", name="Background").click()


def test_a_picture_can_be_saved(page: Opened) -> None:
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Save picture").click()
    saved = _pixels(Path(download.value.path()).read_bytes())
    assert download.value.suggested_filename == "view.png" and saved.shape == (360, 480, 3) and saved.std() > 20


def test_nothing_went_wrong_and_nothing_was_asked_for(page: Opened) -> None:
    assert page.problems == []
    assert page.tab.title() == "Chair & co · secateur"


def test_a_phone_in_the_dark(browser: "playwright.Browser", page: Opened, tmp_path: Path) -> None:
    path = write_page(tmp_path / "page.html", "Chair", [PageScene("chair", read_page(_path(page))[1])])
    phone = Opened(
        browser,
        path,
        viewport={"width": 380, "height": 640},
        color_scheme="dark",
        has_touch=True,
        device_scale_factor=2,
    )
    seen = phone.seen()
    assert seen.shape[:2] == (1280, 760) and seen[300:900].std() > 20
    assert seen[640, 10].mean() < 30, "the background is light in the dark scheme"
    assert phone.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert phone.problems == []


def _path(page: Opened) -> Path:
    from urllib.parse import unquote, urlparse

    return Path(unquote(urlparse(page.tab.url).path))


def _decoded(uri: str) -> np.ndarray:
    return _pixels(base64.b64decode(uri.partition(",")[2]))


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.float32)
