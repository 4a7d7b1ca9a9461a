"""The record: its schema, and that what is written is what is read."""

import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from secateur.evaluation.compare import compare_records
from secateur.evaluation.decode import load_record
from secateur.evaluation.measurements import averaged
from secateur.evaluation.merge import candidate_pairs, merge_records
from secateur.evaluation.record import EvaluationRecord
from secateur.evaluation.schema import record_schema
from secateur.report.record import to_json
from tests.secateur.evaluation.records import record, subject

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(files("secateur.evaluation").joinpath("schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def full() -> EvaluationRecord:
    """A record with something in every field."""
    candidates = [subject(name, psnr=(30.0, 31.0, 32.5, offset)) for name, offset in (("a", 33.0), ("b", 34.0))]
    equal = replace(subject("same"), measurements={"psnr": averaged([math.inf, 30.0], "dB", "PSNR", "higher")})
    made = record(*candidates, equal, details={"why": ["a", {"b": None}]})
    older = record(subject("a", psnr=(20.0, 21.0, 22.0, 23.0)), subject("gone"))
    merged = merge_records([made, record(subject("c"))], ["one", "two"])
    return replace(merged, pairs=candidate_pairs(candidates), comparison=compare_records(made, older, "older.json"))


def test_the_schema_in_the_package_is_that_of_the_dataclasses(schema: dict[str, Any]) -> None:
    assert schema == record_schema(), "run python scripts/record_schema.py"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_what_is_written_fits_the_schema_and_is_read_back(
    full: EvaluationRecord, schema: dict[str, Any], tmp_path: Path
) -> None:
    text = json.dumps(to_json(full), allow_nan=False)
    jsonschema.validate(json.loads(text), schema)
    (tmp_path / "results.json").write_text(text)
    for path in (tmp_path, tmp_path / "results.json"):
        read = load_record(path)
        assert json.dumps(to_json(read), allow_nan=False) == text
        assert read.comparison == full.comparison and read.pairs == full.pairs and read.runs == full.runs
    same = load_record(tmp_path).candidates[2].measurements["psnr"]
    assert same.value is None and same.infinite


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("kind", 3, "kind: 3 should be text"),
        ("runs.0.threads", "two", 'runs[0].threads: "two" should be a number'),
        ("runs.0.machine.colour", "red", "runs[0].machine.colour: no field of this schema"),
        ("reference.name", None, "reference.name: null should be text"),
        ("reference.measurements.size.better", "smaller", "should be one of higher, lower, neither"),
        ("reference.measurements.size.infinite", 1, "should be true or false"),
        ("reference.measurements.size.value", True, "true should be a number"),
        ("reference.measurements", [], "reference.measurements: [] should be an object"),
        ("candidates", {}, "candidates: {} should be a list"),
    ],
)
def test_a_wrong_field_is_named_and_fails_the_schema(
    path: str, value: object, words: str, schema: dict[str, Any], tmp_path: Path
) -> None:
    written = to_json(record())
    place: Any = written
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdecimal() else step]
    place[last] = value
    file = tmp_path / "old.json"
    file.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=f"old.json: .*{re.escape(words)}"):
        load_record(file)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, schema)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    written = to_json(record())
    del written["candidates"][0]["measurements"]["psnr"]["unit"]
    (tmp_path / "results.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"candidates\[0\].measurements.psnr.unit: missing"):
        load_record(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "no record of a run"),
        ('{"reference": {}}', "no field schema; run it again"),
        ('{"schema": "secateur.evaluation/9"}', "'secateur.evaluation/9', this version of secateur reads"),
    ],
)
def test_what_is_no_record_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_record(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone.results\.json: no such file|gone: no such file"):
        load_record(tmp_path / "gone")


def test_the_page_on_the_record_is_up_to_date(schema: dict[str, Any], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    example = page.split("```json\n")[1].split("```")[0]
    jsonschema.validate(json.loads(example), schema)
    (tmp_path / "results.json").write_text(example)
    assert load_record(tmp_path).candidates[0].measurements["psnr"].value == 35.2
    for kind in schema["$defs"].values():
        for name, field in kind["properties"].items():
            assert f"| `{name}` |" in page and f"{field['description']} |" in page, "run scripts/record_schema.py"
