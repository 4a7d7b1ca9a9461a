"""Recipes: short YAML files that become typed dataclasses, with the line of whatever is wrong.

A domain writes down what its recipe holds as a frozen dataclass whose fields are dataclasses, plain values, or classes
named by their path:

    criterion:
      class_path: secateur.importance.Magnitude
      init_args: {power: 1}

There is no registry: jsonargparse imports the class and builds it from its type hints, so a recipe can name anything
that can be imported. Run recipes only from those whom you would let run code.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from secateur.files import replacing_file

NAME = "recipe.yaml"
"""What a recipe is called beside the result that it made."""

_LARGEST = 10**6

Key = tuple[str | int, ...]
"""Where a value is: ("criterion", "init_args", "steps"), ("units", "modules", 0)."""

R = TypeVar("R")


@dataclass(frozen=True)
class RecipeFile(Generic[R]):
    """A recipe, and where each of its values was written.

    Args:
        recipe: what the file says, as a dataclass.
        text: the file, as it was written.
        path: the file; None for a recipe that was made in Python.
        lines: key -> line, from 1.
    """

    recipe: R
    text: str
    path: Path | None = None
    lines: Mapping[Key, int] = dataclasses.field(default_factory=dict)

    def place(self, *key: str | int) -> str:
        """ "file.yaml:12: budget.share: ", the line being that of the key, or of the nearest one above it."""
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")
        name = f"{dotted}: " if dotted else ""
        return name if self.path is None else f"{self.path}:{_line(self.lines, key)}: {name}"

    @contextmanager
    def blaming(self, *key: str | int) -> Iterator[None]:
        """Let a ValueError or FileNotFoundError out with the file, the line and the name of the key to blame."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self.place(*key)}{error}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.place(*key)}{error}") from error

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the text as `recipe.yaml` into a folder; returns the file."""
        target = Path(folder) / NAME
        with replacing_file(target) as temporary:
            temporary.write_text(self.text, encoding="utf-8")
        return target


def read_recipe(path: str | os.PathLike[str], kind: type[R]) -> RecipeFile[R]:
    """Read a recipe and build it, all of it or nothing.

    Args:
        path: a YAML file.
        kind: the dataclass that it becomes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, a key is unknown, missing or there twice, or a value is not what its type or
            its class allows: names the file, the line and the key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are more than a recipe has ({_LARGEST})")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ValueError(f"{path}{where}: not YAML ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of {_fields(kind)}, got {type(values).__name__}")
    lines = _lines(tree, path)
    return RecipeFile(_build(kind, values, lines, path), text, path, lines)


def recipe_of(recipe: R | RecipeFile[R]) -> RecipeFile[R]:
    """A recipe that was made in Python, with the YAML that says the same; one that was read, as it is."""
    if isinstance(recipe, RecipeFile):
        return recipe
    return RecipeFile(recipe, yaml.safe_dump(to_plain(recipe), sort_keys=False, width=120))


def to_plain(value: Any) -> Any:
    """A recipe as what YAML holds: fields that are as by default are left out, classes are named by their path.

    Raises:
        ValueError: a value is neither plain, nor a dataclass, nor a function that can be imported.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        given = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: one for name, one in given.items() if not _is_default(type(value), name, one)}
        return {name: _nested(one, hints[name]) for name, one in changed.items()}
    if isinstance(value, Mapping):
        return {str(name): _nested(one, None) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_nested(one, None) for one in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value) and getattr(value, "__qualname__", "<").isidentifier():
        return f"{value.__module__}.{value.__qualname__}"
    raise ValueError(f"a recipe cannot hold {value!r}")


def _nested(value: Any, hint: Any) -> Any:
    plain = to_plain(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type) or hint is type(value):
        return plain
    if not plain and type(value) in get_args(hint):
        # Within lists, the parser takes an optional value without any field for none at all.
        first = next((each.name for each in dataclasses.fields(value) if each.init), None)
        plain = {} if first is None else {first: to_plain(getattr(value, first))}
    path = f"{type(value).__module__}.{type(value).__qualname__}"
    return {"class_path": path, "init_args": plain} if plain else {"class_path": path}


def _is_default(kind: type, name: str, value: Any) -> bool:
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return field.default is not dataclasses.MISSING and bool(value == field.default)


def _build(kind: type[R], values: Mapping[str, Any], lines: Mapping[Key, int], path: Path) -> R:
    """One field after another, so that what a class says of its own values is laid at the right door."""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"{path}:{_line(lines, (name,))}: unknown key {name!r}; a recipe has {_fields(kind)}")
        try:
            built[name] = _value(hints[name], value)
        except Exception as error:
            wrong = _no_mapping(hints[name], value, (name,))
            key, message = wrong or (_guilty((name,), value, str(error)), _readable(str(error)))
            dotted = ".".join(map(str, key))
            raise ValueError(f"{path}:{_line(lines, key)}: {dotted}: {message}") from error
    missing = [
        name
        for name, field in fields.items()
        if name not in built and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path}: {missing[0]!r} is missing; a recipe has {_fields(kind)}")
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _value(hint: Any, value: Any) -> Any:
    def build() -> Any:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        return parser.instantiate(parser.parse_object({"value": _spelled(hint, value)})).value

    # What a command line's parser leaves behind in its context must not change how a recipe is read.
    return Context().run(build)


def _spelled(hint: Any, value: Any) -> Any:
    """The value, with what the parser would otherwise make up.

    There is a field in every `{}` for a dataclass: within lists the parser takes an empty one for none. And a class
    that is named has its own defaults: the parser gives it fields of the default that it takes the place of.
    """
    inner = get_args(hint)
    if isinstance(value, list) and get_origin(hint) in (list, tuple) and inner:
        return [_spelled(inner[0], one) for one in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" in value:
        named, given = _named(value), value.get("init_args")
        if named is None or not isinstance(given, Mapping):
            return value
        return {**value, "init_args": _fields_spelled(named, given)}
    kind = next((each for each in (hint, *inner) if isinstance(each, type) and dataclasses.is_dataclass(each)), None)
    if kind is None:
        return value
    if not value:
        field = next((each for each in dataclasses.fields(kind) if each.init), None)
        default = dataclasses.MISSING if field is None else field.default
        return value if field is None or default is dataclasses.MISSING else {field.name: to_plain(default)}
    return _fields_spelled(kind, value)


def _fields_spelled(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    return {name: _spelled(hints.get(name), _with_own_defaults(fields.get(name), one)) for name, one in values.items()}


def _with_own_defaults(field: dataclasses.Field[Any] | None, value: Any) -> Any:
    """A class in the place of a field's default, with all that both have."""
    if field is None or field.default_factory is dataclasses.MISSING or not isinstance(value, Mapping):
        return value
    default, named, given = field.default_factory(), _named(value), value.get("init_args", {})
    if named is None or not dataclasses.is_dataclass(default) or not isinstance(given, Mapping):
        return value
    both = {each.name for each in dataclasses.fields(default)}
    own = {each.name: each.default for each in dataclasses.fields(named) if each.init and each.name in both}
    kept = {name: to_plain(one) for name, one in own.items() if one is not dataclasses.MISSING}
    return {**value, "init_args": kept | dict(given)} if kept else value


def _named(value: Mapping[str, Any]) -> type | None:
    """The dataclass that `class_path` names; None where it names none."""
    module, _, name = str(value.get("class_path", "")).rpartition(".")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _no_mapping(hint: Any, value: Any, key: Key) -> tuple[Key, str] | None:
    """The first key, at or below a key, that has something else than the mapping of a dataclass; and what to write."""
    inner = [each for each in get_args(hint) if each is not type(None)]
    below: list[tuple[Any, Any, Key]]
    if isinstance(value, list) and get_origin(hint) in (list, tuple) and inner:
        below = [(inner[0], one, (*key, index)) for index, one in enumerate(value)]
    else:
        kind = hint if not inner else inner[0]
        optional = value is None and type(None) in get_args(hint)
        if len(inner) > 1 or not isinstance(kind, type) or not dataclasses.is_dataclass(kind) or optional:
            return None
        hints = get_type_hints(kind)
        if not isinstance(value, Mapping):
            first = next((each.name for each in dataclasses.fields(kind) if each.init), None)
            told = isinstance(value, str) and first is not None and hints[first] is str
            example = f"such as {{{first}: {value}}}" if told else f"of {_fields(kind)}"
            return key, f"expected a mapping {example}, got {'nothing' if value is None else type(value).__name__}"
        below = [(hints.get(name), one, (*key, name)) for name, one in value.items()]
    return next(filter(None, (_no_mapping(*each) for each in below)), None)


def _guilty(key: Key, value: Any, message: str) -> Key:
    """The key within the value of `key` that a message of the parser is about, as far as it tells."""
    dotted = re.search(r'Parser key "value\.([\w.]+)"', message)
    if dotted:
        return (*key, *dotted[1].split("."))
    quoted = re.findall(r"[Oo]ption '([\w.]+)'", message)
    names = [name.rpartition(".")[2] for name in quoted]
    found = next((where for where in _keys(value) if names and where[-1] == names[-1]), ())
    return (*key, *found)


def _keys(value: Any) -> Iterator[Key]:
    if isinstance(value, Mapping):
        items: Sequence[tuple[Any, Any]] = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list) else []
    for name, below in items:
        yield (name,)
        yield from ((name, *rest) for rest in _keys(below))


def _readable(message: str) -> str:
    """What the parser says, without its keys and what it was given."""
    message = re.sub(r'Parser key "[\w.]+":', "", message)
    message = re.sub(r"Given value type:.*", "", message, flags=re.DOTALL)
    message = re.sub(r"Does not validate against any of the Union subtypes.*?Errors:", "", message, flags=re.DOTALL)
    message = re.sub(r"\s*- Expected a <class 'NoneType'>\.?(?: Got value: \S+)?", "", message)
    message = re.sub(r"Expected a <class '([\w.]+)'>", r"expected \1", message)
    message = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"expected one of \1", message)
    message = re.sub(r"Group '\w+' does not accept option '(\w+)'", r"there is no '\1'", message)
    message = re.sub(r"Option '([\w.]+)' is not accepted", r"there is no '\1'", message)
    message = re.sub(r".*argument after \*\* must be a mapping, not (\w+)", r"expected a mapping, got \1", message)
    message = re.sub(r"Problem with given class_path '([\w.]+)':", r"\1:", message)
    return " ".join(message.replace("\n", " ").split()).removeprefix("- ")


def _lines(tree: yaml.Node | None, path: Path, key: Key = ()) -> dict[Key, int]:
    """Where every key was written, from 1; refuses a key that is there twice."""
    lines: dict[Key, int] = {}
    if isinstance(tree, yaml.MappingNode):
        for name, below in tree.value:
            line = name.start_mark.line + 1
            where = (*key, str(name.value))
            if where in lines:
                raise ValueError(f"{path}:{line}: {name.value!r} is there twice, first in line {lines[where]}")
            lines[where] = line
            lines |= _lines(below, path, where)
    elif isinstance(tree, yaml.SequenceNode):
        for index, below in enumerate(tree.value):
            lines[(*key, index)] = below.start_mark.line + 1
            lines |= _lines(below, path, (*key, index))
    return lines


def _line(lines: Mapping[Key, int], key: Key) -> int:
    return next((lines[key[:end]] for end in range(len(key), 0, -1) if key[:end] in lines), 1)


def _fields(kind: type) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind))
