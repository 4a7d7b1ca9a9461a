import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from secateur.report.html import render_page
from secateur.report.page import (
    Drawing,
    Figure,
    Meter,
    Page,
    Plot,
    Point,
    Result,
    Table,
    View,
    as_pictures,
    errors_between,
    write_report,
)

HOSTILE = """</script><script>alert("1")</script><img src=x onerror='alert(2)'>&$title"""


def picture(level: int) -> np.ndarray:
    return np.full((20, 30, 3), level, np.uint8)


def page(name: str = "scene.ply", results: int = 2) -> Page:
    views = (View(f"{name} view 1", picture(10)), View("View 2", picture(20)))
    made = tuple(
        Result(
            f"{name} result {index}",
            (Figure("Size", "1 MB", "2 MB", f"{name} note"),),
            (picture(11), picture(21)),
            (np.ones((20, 30), np.float32), np.zeros((20, 30), np.float32)),
            ("30 dB", "40 dB"),
            (Table(f"{name} table", ("what", "how much"), ((name, Meter("5", 0.5)),), name, ("all", "5")),),
        )
        for index in range(results)
    )
    plot = Plot("Quality over size", "MB", name, (Point(1.0, 30.0, name), Point(2.0, 35.0, "big")))
    return Page(name, f"{name} compressed", "Original", views, made, (plot,), {name: name})


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of script elements."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def test_the_page_needs_nothing_but_itself() -> None:
    document = render_page(page())
    for tag, attributes in Tags(document).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)
    assert not re.search(r"https?://|@import|url\((?!data:)|fetch\(|XMLHttpRequest", document)


def test_links_lead_to_files_beside_the_page() -> None:
    links = {"In 3D <b>": "scene.html", "elsewhere": "javascript:alert(1)"}
    document = render_page(replace(page(), links=links))
    found = [attributes["href"] for tag, attributes in Tags(document).tags if tag == "a"]
    assert found == ["./scene.html", "./javascript%3Aalert%281%29"] and "In 3D &lt;b&gt;" in document


def test_tags_are_balanced() -> None:
    assert Tags(render_page(page())).open == []


def test_names_from_outside_stay_text() -> None:
    plain, hostile = Tags(render_page(page())), Tags(render_page(page(HOSTILE)))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in hostile.tags]
    assert not any("onerror" in attributes for _, attributes in hostile.tags)
    assert json.loads(hostile.scripts[0])["results"][0]["name"] == f"{HOSTILE} result 0"


def test_pictures_are_inside_and_can_be_read() -> None:
    record = json.loads(Tags(render_page(page())).scripts[0])
    assert [view["name"] for view in record["views"]] == ["scene.ply view 1", "View 2"]
    uri = record["results"][1]["images"][0]
    kind, _, data = uri.partition(";base64,")
    image = Pictures.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/webp" and image.size == (30, 20)
    assert abs(int(np.asarray(image).mean()) - 11) <= 2


def test_one_result_offers_no_choice_and_many_do() -> None:
    assert 'data-result="0"' not in render_page(page(results=1))
    assert 'data-result="1"' in render_page(page(results=2))


def test_controls_are_named_for_those_who_cannot_see_them() -> None:
    tags = Tags(render_page(page())).tags
    sliders = [attributes for tag, attributes in tags if tag == "input"]
    assert len(sliders) == 1 and sliders[0].get("aria-label")
    assert all("alt" in attributes for tag, attributes in tags if tag == "img")
    choosing = [attributes for _, attributes in tags if {"data-result", "data-view"} & set(attributes)]
    assert choosing and all("aria-pressed" in attributes for attributes in choosing)
    assert all(
        "role" in attributes and attributes["tabindex"] == "0"
        for tag, attributes in tags
        if "data-result" in attributes and tag == "g"
    )
    assert any(tag == "svg" and attributes.get("aria-label") for tag, attributes in tags)
    assert dict(tags)["html"].get("lang") == "en"


def test_a_report_without_pictures_is_a_page_still() -> None:
    bare = Page("a", "b", "Original", (), (Result("r", (), (), (), (), ()),))
    assert Tags(render_page(bare)).open == []


def test_drawings_stand_for_themselves_beside_their_result() -> None:
    drawn = Result("r", (), (), (), (), (), (Drawing(HOSTILE, picture(3), HOSTILE),))
    document = render_page(Page("a", "b", "Original", (), (drawn, Result("s", (), (), (), (), ()))))
    found = Tags(document)
    images = [attributes for tag, attributes in found.tags if tag == "img"]
    assert [image.get("width") for image in images] == ["30", None]
    assert str(images[0]["src"]).startswith("data:image/webp;base64,") and "alert(2)'>" not in document


def test_results_without_a_picture_for_each_view_are_refused() -> None:
    result = Result("r", (), (picture(1),), (), (), ())
    with pytest.raises(ValueError, match="for each of 1 views"):
        Page("a", "b", "Original", (View("v", picture(1)),), (result,))
    with pytest.raises(ValueError, match="at least one result"):
        Page("a", "b", "Original", (), ())


def test_both_files_are_written_and_replaced(tmp_path: Path) -> None:
    for number in (1, 2):
        path = write_report(page(), {"number": number, "lost": float("nan")}, tmp_path / "report")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["index.html", "results.json"]
    assert json.loads((path.parent / "results.json").read_text()) == {"number": 2, "lost": None}
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_pictures_are_clamped_and_rounded() -> None:
    image = np.array([[[-0.5, 0.5, 1.5]]], np.float32)
    assert as_pictures([image])[0].tolist() == [[[0, 128, 255]]]


def test_errors_are_mean_absolute_levels() -> None:
    one, other = np.array([[[10, 20, 30]]], np.uint8), np.array([[[13, 20, 24]]], np.uint8)
    assert errors_between(one, other).tolist() == [[3.0]]


def noisy(seed: int, size: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def test_a_page_that_would_be_too_large_stores_its_pictures_smaller_and_says_so() -> None:
    views = tuple(View(f"View {index}", noisy(index)) for index in range(2))
    errors = tuple(np.zeros((120, 120), np.float32) for _ in views)
    result = Result("r", images=tuple(noisy(index + 2) for index in range(2)), errors=errors, captions=("", ""))
    large = Page("a", "b", "Original", views, (result,))
    whole = render_page(large)
    small = render_page(large, largest=len(whole) - 20_000)
    assert len(small) <= len(whole) - 20_000
    assert "to keep the page small" in small and "to keep the page small" not in whole
    images = json.loads(Tags(small).scripts[0])["results"][0]["images"]
    assert Pictures.open(io.BytesIO(base64.b64decode(images[0].partition(",")[2]))).size[0] <= 120


def test_a_page_that_cannot_be_made_small_enough_is_refused(tmp_path: Path) -> None:
    table = Table("t", ("a",), tuple((f"row {index}",) for index in range(1000)))
    large = Page("a", "b", "Original", (), (Result("r", tables=(table,)),))
    with pytest.raises(ValueError, match=r"0\.1 MB.*limit is 0.01 MB.*shorter tables"):
        render_page(large, largest=10_000)


def test_the_page_describes_itself_in_its_head() -> None:
    tags = Tags(render_page(page(HOSTILE))).tags
    described = next(attributes for _, attributes in tags if attributes.get("name") == "description")
    assert str(described["content"]).startswith(f"{HOSTILE} compressed") and "Size 1 MB" in str(described["content"])
    icons = [attributes for tag, attributes in tags if tag == "link"]
    assert [str(icon["href"])[:23] for icon in icons] == ["data:image/webp;base64,"]


def test_results_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="names of their own"):
        Page("a", "b", "Original", (), (Result("r"), Result("r")))
    with pytest.raises(ValueError, match="shown first"):
        Page("a", "b", "Original", (), (Result("r"),), chosen=1)


def test_the_chosen_result_is_seen_before_any_script_runs() -> None:
    document = render_page(replace(page(), chosen=1))
    figures = [attributes for tag, attributes in Tags(document).tags if attributes.get("class") == "figures"]
    assert ["hidden" in attributes for attributes in figures] == [True, False]
