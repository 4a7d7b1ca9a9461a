"""What says how records look is up to date."""

from pathlib import Path

import pytest

from scripts import record_schema


def test_the_schema_and_its_page_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert record_schema.main(["--check"]) == 0, capsys.readouterr().out


def test_what_is_out_of_date_is_named_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = record_schema.PAGE.read_text(encoding="utf-8")
    for name in ("SCHEMA", "PAGE"):
        monkeypatch.setattr(record_schema, name, tmp_path / name)
    record_schema.SCHEMA.write_text("{}\n")
    record_schema.PAGE.write_text(page.replace("| `kind` |", "| `sort` |"))
    assert record_schema.main(["--check"]) == 1
    assert "SCHEMA, PAGE out of date" in capsys.readouterr().out
    assert record_schema.main([]) == 0 and record_schema.main(["--check"]) == 0
    assert record_schema.PAGE.read_text(encoding="utf-8") == page
    assert record_schema.main(["--fast"]) == 2
