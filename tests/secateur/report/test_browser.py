"""The page in a real browser, as people use it: mouse, keyboard, phone, dark mode. Chromium is started once."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur.report.evaluation import whole_page
from secateur.report.index import write_index
from secateur.report.page import write_report
from tests.secateur.report import example

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PHONE = {"width": 380, "height": 760}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")


class Watched:
    """A page of the browser, with what it said on the console and which requests it made."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.said: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = example.record()
    return write_report(whole_page(record, example.page()), record, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def window() -> Iterator[Watched]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield Watched(browser.new_page())
        browser.close()


@pytest.fixture
def opened(window: Watched, report: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The report, on a desktop or as the test's parameter asks; nothing was said and nothing fetched when it ends."""
    options = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light", **getattr(request, "param", {})}
    window.page.set_viewport_size(options["viewport"])
    window.page.emulate_media(color_scheme=options["color_scheme"])
    window.page.goto(report.as_uri())
    yield window
    assert window.said == []
    assert [url for url in window.requests if not url.startswith(("data:", report.as_uri()))] == []


def cut(page: Any) -> float:
    return float(page.locator(".canvas").evaluate("canvas => parseFloat(canvas.style.getPropertyValue('--cut'))"))


def chosen(page: Any) -> set[str]:
    """Names of the result that buttons, points, rows and pictures say is shown."""
    pressed = page.locator("[data-result][aria-pressed=true]").evaluate_all(
        "all => all.map(one => (one.getAttribute('aria-label') ?? one.textContent).split(':')[0].trim())"
    )
    row = page.locator("tr.chosen th").all_inner_texts()
    label = page.locator(".at-right").inner_text().partition(" · ")[2]
    return {*pressed, *row, label}


def test_the_slider_follows_the_mouse(opened: Watched) -> None:
    page = opened.page
    page.locator(".canvas").scroll_into_view_if_needed()
    box = page.locator(".canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    page.mouse.up()
    assert cut(page) == pytest.approx(25, abs=1)
    assert float(page.locator(".cut").input_value()) == pytest.approx(25, abs=1)


def test_the_slider_follows_the_keys_and_says_where_it_is(opened: Watched) -> None:
    slider = opened.page.locator(".cut")
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "Home", "ArrowRight"):
        slider.press(key)
    assert cut(opened.page) == 1
    assert slider.get_attribute("aria-valuetext") == "1 % original"
    slider.press("End")
    assert cut(opened.page) == 100


@pytest.mark.parametrize(
    "selector", [".choices [data-result='2']", ".summary [data-result='2']", ".plots g[data-result='2']"]
)
def test_a_result_is_chosen_by_click_and_by_key(opened: Watched, selector: str) -> None:
    page = opened.page
    assert chosen(page) == {"keep 50%"}
    before = page.locator(".right").get_attribute("src")
    page.locator(selector).first.click()
    assert chosen(page) == {"keep 10%"}
    assert page.locator(".right").get_attribute("src") != before
    assert page.locator(".figures:visible").inner_text().startswith("PSNR\n27.")
    for key in ("Enter", " "):
        page.locator(selector.replace("2", "1" if key == "Enter" else "3")).first.press(key)
    assert chosen(page) == {"dearer and worse"}


def test_every_candidate_is_a_point_that_can_be_focused(opened: Watched) -> None:
    for plot in opened.page.locator(".plot").all():
        labels = plot.locator("g[role=button][tabindex='0']").evaluate_all(
            "points => points.map(point => point.getAttribute('aria-label').split(':')[0])"
        )
        assert sorted(labels) == sorted(example.NAMES)
    assert opened.page.locator(".plot").count() == 3


def column(page: Any, index: int) -> list[str]:
    cells = page.locator(f".summary tbody tr > *:nth-child({index + 1})").all_inner_texts()
    return [cell.replace("best:", "").strip().split("\n")[0].strip() for cell in cells]


def test_tables_are_sorted_by_click_and_by_key_and_the_reference_stays_on_top(opened: Watched) -> None:
    page = opened.page
    heading = page.locator(".summary thead th", has_text="file size")
    place = heading.evaluate("heading => heading.cellIndex")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column(page, place) == ["1.31 MB", "114 kB", "332 kB", "655 kB", "700 kB"]
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(page, 0) == [example.REFERENCE, "dearer and worse", "keep 50%", "keep 25%", "keep 10%"]
    page.locator(".summary thead button").first.click()
    assert column(page, 0)[1:] == ["dearer and worse", "keep 10%", "keep 25%", "keep 50%"]
    assert heading.get_attribute("aria-sort") is None


def test_views_and_error_maps_are_chosen(opened: Watched) -> None:
    page = opened.page
    before = page.locator(".left").get_attribute("src")
    page.locator("[data-view='3']").click()
    assert page.locator(".left").get_attribute("src") != before
    assert page.locator(".left").get_attribute("alt") == "View 4: Original"
    assert page.locator(".heat").is_hidden()
    page.locator("button[data-mode='error']").click()
    assert page.locator(".heat").is_visible() and page.locator(".cut").is_hidden()


def test_pictures_are_zoomed_and_moved_by_keys_and_by_mouse(opened: Watched) -> None:
    page, canvas = opened.page, opened.page.locator(".canvas")
    width = page.locator(".right").bounding_box()["width"]
    page.locator(".stage [data-zoom=in]").click()
    assert page.locator(".right").bounding_box()["width"] == pytest.approx(2 * width, rel=0.01)
    left = page.locator(".right").bounding_box()["x"]
    canvas.focus()
    canvas.press("ArrowRight")
    assert page.locator(".right").bounding_box()["x"] == pytest.approx(left - 0.1 * width, abs=1)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 50)
    page.mouse.up()
    assert page.locator(".right").bounding_box()["x"] == pytest.approx(left - 0.05 * width, abs=1)
    assert cut(page) == 50
    canvas.press("-")
    assert page.locator(".right").bounding_box()["width"] == pytest.approx(width, rel=0.01)


def test_drawings_open_large_and_close_by_key(opened: Watched) -> None:
    page = opened.page
    page.locator(".drawing:visible").press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    width = dialog.locator("img").bounding_box()["width"]
    assert width > 600
    dialog.locator("[data-zoom=in]").click()
    assert dialog.locator("img").bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.02)
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert page.locator(".drawing:visible").evaluate("button => button === document.activeElement")


@pytest.mark.parametrize("opened", [{"viewport": PHONE}], indirect=True)
def test_a_phone_scrolls_downwards_only(opened: Watched) -> None:
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".summary .scroll").evaluate("box => box.scrollTo(1000, 0)")
    assert page.locator(".summary tbody th").first.bounding_box()["x"] > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


CONTRASTS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (front, back) => front.slice(0, 3).map((c, i) => c * (front[3] ?? 1) + back[i] * (1 - (front[3] ?? 1)));
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parse(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(".unseen, script, style, title, :disabled")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const front = over(parse(element.closest("svg text") ? style.fill : style.color), back);
    const [low, high] = [light(front), light(back)].sort((one, other) => one - other);
    found.push([(high + 0.05) / (low + 0.05), element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_index_fits_a_phone_and_can_be_read(window: Watched, report: Path, scheme: str) -> None:
    page, index = window.page, write_index(report.parents[1])[0]
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme=scheme)
    page.goto(index.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 5 and [one for one in contrasts if one[0] < 4.5] == []
    page.locator(".runs a").first.click()
    assert page.url == report.as_uri() and window.said == []
    window.requests.clear()


@pytest.mark.parametrize("opened", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_all_text_can_be_read(opened: Watched) -> None:
    """WCAG 2.1, 1.4.3: a contrast of 4.5 at least."""
    page = opened.page
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", dark))) < 60) == page.evaluate(
        "matchMedia('(prefers-color-scheme: dark)').matches"
    )
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 100
    assert [one for one in contrasts if one[0] < 4.5] == []


def test_the_focus_can_be_seen(opened: Watched) -> None:
    page = opened.page
    seen = set()
    while "drawing" not in seen:
        page.keyboard.press("Tab")
        name, outline, stroke = page.evaluate(
            """() => { const one = document.activeElement, area = one.querySelector(".area");
            return [one.className.baseVal ?? (one.className || one.tagName), getComputedStyle(one).outlineStyle,
                    area ? getComputedStyle(area).stroke : "none"]; }"""
        )
        seen.add(name)
        assert outline not in ("none", "") or stroke != "none", name
    assert {"sort", "chooser", "mark", "cut"} <= seen
