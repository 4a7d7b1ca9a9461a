"""Records read back from JSON: each field is checked against the type that its dataclass gives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from secateur.evaluation.record import SCHEMA, EvaluationRecord

RESULTS = "results.json"


def load_record(path: Path) -> EvaluationRecord:
    """The record in a file, or in the `results.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no JSON, no record of a run, or one of another version; says which field.
    """
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; every run that reports writes one")
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: no JSON: {error}") from error
    found = fields.get("schema") if isinstance(fields, dict) else None
    if found is None:
        raise ValueError(f"{file}: no record of a run: it has no field schema; run it again to get one")
    if found != SCHEMA:
        raise ValueError(f"{file}: its schema is {found!r}, this version of secateur reads {SCHEMA!r}")
    try:
        return read_fields(EvaluationRecord, fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def read_fields(kind: Any, value: Any, where: str = "") -> Any:
    """`value`, which `to_json` may have made, as an object of the type `kind`.

    Args:
        kind: a dataclass, or a type of one of its fields.
        value: what JSON holds.
        where: the field, for errors.

    Raises:
        ValueError: the value is of another type, or a field is missing or unknown; says where.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value if value in inner else _wrong(where, value, f"one of {', '.join(map(str, inner))}")
    if origin in (Union, UnionType):
        return None if value is None else read_fields(next(one for one in inner if one is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            return _wrong(where, value, "a list")
        return tuple(read_fields(inner[0], one, f"{where}[{index}]") for index, one in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            return _wrong(where, value, "an object")
        return {name: read_fields(inner[1], one, _within(where, name)) for name, one in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return (
        value
        if type(value) is kind
        else _wrong(where, value, {str: "text", bool: "true or false"}.get(kind, "a number"))
    )


def _object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        return _wrong(where, value, "an object")
    types, known = get_type_hints(kind), {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in known:
            raise ValueError(f"{_within(where, name)}: no field of this schema")
    for name, field in known.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{_within(where, name)}: missing")
    return kind(**{name: read_fields(types[name], one, _within(where, name)) for name, one in value.items()})


def _within(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _wrong(where: str, value: Any, right: str) -> Any:
    raise ValueError(f"{where}: {json.dumps(value)[:60]} should be {right}")
