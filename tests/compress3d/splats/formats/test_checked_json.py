"""JSON whose every access is checked: the message says where the value stands and what it should have been."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compress3d.splats.formats.checked_json import Json

TEXT = b'{"a": {"b": [1, 2.5, "x", null]}, "n": 7.0, "t": true, "big": 1e39, "s": "text"}'


@pytest.fixture
def document() -> Json:
    return Json.parse(TEXT, "file.json")


def test_what_is_there_is_found(document: Json) -> None:
    assert document["a"]["b"][1].number() == 2.5
    assert document["n"].integer(0, 7) == 7 and document["s"].text() == "text"
    assert document.get("none") is None and document["a"]["b"].get(3) is None and document["a"]["b"].get(4) is None
    assert document.names() == ["a", "n", "t", "big", "s"] and len(document["a"]["b"]) == 4
    assert Json.parse(b"[1, 2]", "f").numbers(1, 2) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("access", "message"),
    [
        (lambda d: d["z"], "file.json: z is missing"),
        (lambda d: d["a"]["c"], "file.json: a.c is missing"),
        (lambda d: d["a"]["b"][3], r"file.json: a.b\[3\] is missing"),
        (lambda d: d["a"][0], "file.json: a must be an array, got dict"),
        (lambda d: d["s"]["x"], "file.json: s must be an object, got 'text'"),
        (lambda d: d["n"].integer(0, 6), "file.json: n must be a whole number from 0 to 6, got 7.0"),
        (lambda d: d["t"].integer(0, 6), "file.json: t must be a whole number"),
        (lambda d: d["t"].number(), "file.json: t must be a finite number"),
        (lambda d: d["big"].number(), "file.json: big must be a finite number"),
        (lambda d: d["n"].text(), "file.json: n must be a string, got 7.0"),
        (lambda d: d["a"]["b"].numbers(4), r"file.json: a.b\[2\] must be a finite number"),
        (lambda d: d["a"]["b"].numbers(3), "file.json: a.b must have 3 numbers, got 4"),
        (lambda d: d["a"]["b"].numbers(5, 9), "file.json: a.b must have 5 to 9 numbers, got 4"),
        (lambda d: list(d["s"]), "file.json: s must be an array"),
    ],
)
def test_what_is_not_is_named(document: Json, access: Callable[[Json], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        access(document)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json_is_a_clear_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"file\.json: not JSON"):
        Json.parse(text, "file.json")


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1" + b"0" * 400, b"1e400"])
def test_numbers_beyond_measure_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        Json.parse(text, "file.json").number()
