import json
import re
from pathlib import Path

import pytest
import torch

from compress3d.splats.formats import read_scene, write_scene
from compress3d.splats.sizes import bytes_by_attribute
from compress3d.splats.standalone.comparison import write_comparison_page
from compress3d.splats.standalone.page import PageScene, TooLargeError, read_page, write_page
from secateur.cli import main
from tests.compress3d.splats.viewer.balls import scene, views, with_harmonics


def test_a_page_holds_its_scenes_and_asks_for_nothing_else(tmp_path: Path) -> None:
    path = write_page(
        tmp_path / "page.html", "Ball", [PageScene("original", scene(80)), PageScene("half", scene(40), "half of it")]
    )
    assert [len(one) for one in read_page(path)] == [80, 40]
    text = path.read_text(encoding="utf-8")
    assert "default-src 'none'" in text and "half of it" in text and ">original</button>" in text
    assert not re.search(r"(https?:)?//[a-z]+\.[a-z]", text) and "import(" not in text and "fetch(" not in text


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    name = "</title><script>alert('&\"1')</script>"
    path = write_page(tmp_path / "page.html", name, [PageScene(name, scene(5), name), PageScene("b", scene(5))])
    text = path.read_text(encoding="utf-8")
    assert "<script>alert" not in text and text.count("</title>") == 1
    assert "<title>&lt;/title&gt;&lt;script&gt;alert(&#x27;&amp;&quot;1&#x27;)" in text
    assert len(read_page(path)) == 2


def test_a_page_that_is_too_large_says_how_many_would_fit(tmp_path: Path) -> None:
    ball = scene(20_000)
    with pytest.raises(
        TooLargeError, match=r"page\.html: 20,000 Gaussians make a page of .* 200 kB is the most: about"
    ):
        write_page(tmp_path / "page.html", "Ball", [PageScene("ball", ball)], limit_bytes=200_000)
    assert not list(tmp_path.iterdir())
    try:
        write_page(tmp_path / "page.html", "Ball", [PageScene("ball", ball)], limit_bytes=200_000)
    except TooLargeError as error:
        fits = int(re.search(r"about ([\d,]+) Gaussians", str(error))[1].replace(",", ""))  # type: ignore[index]
    assert 3000 < fits < 20_000
    write_page(tmp_path / "page.html", "Ball", [PageScene("ball", scene(fits))], limit_bytes=200_000)


def test_nothing_to_show_and_what_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    broken = scene(5)
    broken.means[2] = torch.nan
    for scenes, words in (
        ([], "nothing to show"),
        ([PageScene("none", scene(0))], "nothing to show"),
        ([PageScene("broken", broken)], "position"),
    ):
        with pytest.raises(ValueError, match=words):
            write_page(tmp_path / "page.html", "Ball", scenes)
    assert not list(tmp_path.iterdir())


def test_harmonics_are_left_out_where_only_that_makes_the_page_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ball, path = with_harmonics(scene(3000)), tmp_path / "ball.html"
    write_scene(ball, path)
    assert read_scene(path).sh_degree == 3 and not caplog.records
    sizes = bytes_by_attribute(path, 3)
    assert sum(sizes.values()) == path.stat().st_size and sizes["shN"] == max(sizes.values())
    half = PageScene("half", ball.select(torch.arange(1500)), "half of it")
    assert write_comparison_page(path, "Ball", PageScene("all", ball), [half])[1] is half
    assert [one.sh_degree for one in read_page(path)] == [3, 3]
    for limit, words, degree in ((190_000, "256 sets of harmonics", 3), (150_000, "colours of degree 0", 0)):
        monkeypatch.setattr(write_page, "__defaults__", (*write_page.__defaults__[:-1], limit))  # type: ignore[index]
        assert write_comparison_page(path, "Ball", PageScene("all", ball), [half])[1] is half
        assert f"half of it, {words}" in path.read_text()
        for one in read_page(path):
            assert one.sh_degree == degree and len({row.tobytes() for row in one.shN.numpy()}) <= 256
    monkeypatch.setattr(write_page, "__defaults__", (*write_page.__defaults__[:-1], 100_000))  # type: ignore[index]
    write_scene(ball, path)
    assert read_scene(path).sh_degree == 0 and "has only colours of degree 0" in caplog.text


def test_pages_are_a_format_of_scenes(tmp_path: Path) -> None:
    assert main(["splat", "convert", str(_ball(tmp_path, 60)), str(tmp_path / "ball.html")]) == 0
    again = read_scene(tmp_path / "ball.html")
    assert len(again) == 60 and again.sh_degree == 0
    sizes = bytes_by_attribute(tmp_path / "ball.html", 0)
    assert sum(sizes.values()) == (tmp_path / "ball.html").stat().st_size and sizes["means"] == max(sizes.values())
    assert main(["splat", "info", str(tmp_path / "ball.html")]) == 0


def test_other_and_damaged_pages_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.html").write_text("<!doctype html><title>Ball</title>")
    with pytest.raises(ValueError, match=r"other\.html: not a page that secateur wrote"):
        read_scene(tmp_path / "other.html")
    text = write_page(tmp_path / "page.html", "Ball", [PageScene("ball", scene(50))]).read_text()
    damages = {"</script>\n<script type=": "", '"count": 50': '"count": 51', 'id="scene-0">': 'id="scene-0">é'}
    for old, new in damages.items():
        assert old in text
        (tmp_path / "broken.html").write_text(text.replace(old, new), encoding="utf-8")
        with pytest.raises(ValueError, match=r"broken\.html: a damaged page"):
            read_scene(tmp_path / "broken.html")


def test_a_comparison_leaves_out_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, half, tenth = (PageScene(str(count), scene(count)) for count in (20_000, 10_000, 2_000))
    path = tmp_path / "scene.html"
    assert write_comparison_page(path, "Ball", original, [half, tenth]) == (original, half, tenth)
    assert [len(one) for one in read_page(path)] == [20_000, 10_000, 2_000]
    limits = {400_000: (half, tenth), 120_000: (tenth,)}
    for limit, shown in limits.items():
        monkeypatch.setattr(write_page, "__defaults__", (*write_page.__defaults__[:-1], limit))  # type: ignore[index]
        assert write_comparison_page(path, "Ball", original, [half, tenth]) == shown
        assert len(read_page(path)) == len(shown)
    monkeypatch.setattr(write_page, "__defaults__", (*write_page.__defaults__[:-1], 50_000))  # type: ignore[index]
    with pytest.raises(TooLargeError, match="2,000 Gaussians"):
        write_comparison_page(path, "Ball", original, [half, tenth])


def _ball(folder: Path, count: int) -> Path:
    write_scene(scene(count), folder / "ball.ply")
    return folder / "ball.ply"


def test_compress_writes_a_page_of_the_original_and_its_compressions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress3d.splats.report._LONGER_SIDE", 40)
    _ball(tmp_path, 300)
    (tmp_path / "cameras.json").write_text(json.dumps(views(6).to_json()))
    line = "splat compress ball.ply -o small.spz --keep 50%,10% --recover 0 --cameras cameras.json"
    assert main(f"{line} --report-3d".split()) == 2
    assert "--report-3d needs --report DIR" in capsys.readouterr().err and not list(tmp_path.glob("small*"))
    assert main(f"{line} --report out --report-3d".split()) == 0
    assert [len(one) for one in read_page(tmp_path / "out" / "scene.html")] == [300, 150, 30]
    text = (tmp_path / "out" / "scene.html").read_text(encoding="utf-8")
    assert "<title>ball.ply · secateur" in text and "keep 10%" in text and " dB" in text


def test_no_room_for_the_original_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress3d.splats.report._LONGER_SIDE", 40)
    monkeypatch.setattr(write_page, "__defaults__", (*write_page.__defaults__[:-1], 40_000))  # type: ignore[index]
    _ball(tmp_path, 2000)
    (tmp_path / "cameras.json").write_text(json.dumps(views(6).to_json()))
    line = "splat compress ball.ply -o small.spz --keep 5% --recover 0 --cameras cameras.json --report out --report-3d"
    assert main(line.split()) == 0
    assert "no room for original" in " ".join(capsys.readouterr().err.split())
    assert [len(one) for one in read_page(tmp_path / "out" / "scene.html")] == [100]
