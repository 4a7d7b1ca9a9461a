"""The JSON schema of a record, made from its dataclasses: `schema.json` holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from secateur.evaluation.record import SCHEMA, EvaluationRecord

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean"}


def record_schema() -> dict[str, Any]:
    """The schema of an evaluation's `results.json` (JSON Schema, draft 2020-12)."""
    definitions: dict[str, Any] = {}
    root = _object(EvaluationRecord, definitions)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA}
    return {**head, **root, "$defs": dict(sorted(definitions.items()))}


def described_fields(kind: type) -> dict[str, str]:
    """Field of a dataclass -> what its docstring says of it."""
    from docstring_parser import parse

    found = {one.arg_name: " ".join((one.description or "").split()) for one in parse(kind.__doc__ or "").params}
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    types, told = get_type_hints(kind), described_fields(kind)
    required = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name == "schema" or field.default is field.default_factory is dataclasses.MISSING
    ]
    properties = {name: {**_schema_of(types[name], definitions), "description": text} for name, text in told.items()}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema_of(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # taken, so that a kind within itself would end
            definitions[kind.__name__] = _object(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        return {"anyOf": [{"type": "null"} if one is type(None) else _schema_of(one, definitions) for one in inner]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(inner[0], definitions)}
    if origin is not None and issubclass(origin, Mapping):
        values = _schema_of(inner[1], definitions)
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    return {"type": _PLAIN[kind]}
