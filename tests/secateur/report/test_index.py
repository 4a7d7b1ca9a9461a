import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from secateur.cli import main
from secateur.report.evaluation import whole_page
from secateur.report.index import PAGE, write_index
from secateur.report.page import write_report
from secateur.report.record import to_json
from tests.secateur.report import example

HOSTILE = "<img src=x onerror=alert(1)>&\"'[/red]"


class Links(HTMLParser):
    """Tags, and where links lead."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    @property
    def addresses(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.tags if tag == "a"]


def plain_run(folder: Path, started_at: str = "2026-11-21T17:00:00+00:00") -> None:
    """A run without pictures."""
    record = example.record()
    record = replace(record, runs=(replace(record.runs[0], started_at=started_at),))
    write_report(whole_page(record), record, folder)


def test_runs_below_the_folder_are_listed_with_headlines_and_pictures(tmp_path: Path) -> None:
    record = example.record()
    write_report(whole_page(record, example.page()), record, tmp_path / "deep" / "chair")
    plain_run(tmp_path / "scene", "1970-01-01T00:00:00+00:00")
    page, runs = write_index(tmp_path)
    assert [run.folder for run in runs] == ["deep/chair", "scene"]
    newest, oldest = runs
    assert newest.kind == "splat" and newest.date.startswith("2026-11-21") and newest.more == 1
    assert newest.headlines[1] == "keep 25%: PSNR 31.49 dB, file size 332 kB (3.93 times smaller)"
    assert oldest.date.startswith("1970") and oldest.headlines == newest.headlines and oldest.icon is None
    found = Links(page)
    for address in found.addresses:
        assert (tmp_path / unquote(address)).is_file()
    pictures = [str(attributes["src"]) for tag, attributes in found.tags if tag == "img"]
    assert len(pictures) == 1 and pictures[0].startswith("data:image/webp;base64,")
    assert page.stat().st_size < 50_000
    assert write_index(tmp_path)[1] == runs


@pytest.mark.parametrize("name", [HOSTILE.replace("/", ""), "javascript:alert(1)", "a?b#c", "%2e%2e", "ü\udcff"])
def test_names_from_outside_stay_names(tmp_path: Path, name: str) -> None:
    try:
        (tmp_path / name).mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such names")
    plain_run(tmp_path / name)
    plain, _ = write_index(tmp_path)
    found = Links(plain)
    assert [tag for tag, _ in found.tags].count("img") == 0
    (address,) = found.addresses
    assert address.startswith("./") and not set(":?#<>\"'") & set(address)
    assert main(["report", "index", str(tmp_path)]) == 0


def test_records_from_outside_stay_text_of_bounded_length(tmp_path: Path) -> None:
    record = to_json(example.record(HOSTILE))
    record["candidates"][0]["name"] = HOSTILE + "x" * 10_000
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(record))
    page, (run,) = write_index(tmp_path)
    assert not any("onerror" in attributes for _, attributes in Links(page).tags)
    assert not run.has_page and Links(page).addresses == []
    assert page.stat().st_size < 40_000


@pytest.mark.parametrize(
    "text",
    ["", "no json", "[" * 100_000, '{"schema": "secateur.evaluation/1"}', '{"schema": "secateur.evaluation/9"}', "[1]"],
)
def test_records_that_cannot_be_read_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(text)
    page, (run,) = write_index(tmp_path)
    assert "no record that can be read" in run.problem and run.problem in page.read_text(encoding="utf-8")


def test_a_record_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "results.json").open("wb") as file:
        file.truncate(65_000_000)
    assert "too large to read: 65 MB" in write_index(tmp_path)[1][0].problem


def test_links_are_not_followed_and_hidden_folders_are_left_out(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    plain_run(tmp_path / "elsewhere")
    plain_run(runs / ".hidden")
    plain_run(runs / "shown")
    (runs / "link").symlink_to(tmp_path / "elsewhere")
    assert [run.folder for run in write_index(runs)[1]] == ["shown"]


def test_what_is_not_an_index_is_not_overwritten(tmp_path: Path) -> None:
    plain_run(tmp_path / "run")
    with pytest.raises(ValueError, match="is a run itself"):
        write_index(tmp_path / "run")
    (tmp_path / PAGE).write_text("my own page")
    with pytest.raises(ValueError, match="move it away"):
        write_index(tmp_path)
    assert (tmp_path / PAGE).read_text() == "my own page"


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run lies below it"):
        write_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_index(tmp_path / "missing")
