"""The `secateur` command: finds the domains' commands, and turns what goes wrong into one clear line.

A domain offers its commands through the entry-point group `secateur.commands` (name -> `CommandGroup`), and its way to
compare two things of its kind through `secateur.evaluators` (name -> `Evaluator`). The modules that these name are
loaded for every call, so they import torch and the like only inside functions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, NoReturn, Protocol

from jsonargparse import ArgumentParser, Namespace

from secateur.interrupts import naming_what_was_written

BAD_INPUT = 2
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Args:
        help: one line that says what it does.
        configure: adds its arguments to a parser.
        run: does it; called with the arguments by name; returns a record that `to_json` understands.
        show: prints the record for people.
    """

    help: str
    configure: Callable[[ArgumentParser], object]
    run: Callable[..., Any]
    show: Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """The commands of a domain by name, and one line that says what the domain is."""

    help: str
    commands: Mapping[str, Command]


class Evaluator(Protocol):
    """Compares candidates with a reference of one kind."""

    options: Mapping[str, Mapping[str, Any]]
    """Flag -> keyword arguments of `add_argument`; evaluators that name the same flag share it."""

    def accepts(self, path: Path) -> bool:
        """Whether the thing at `path` is of this kind, judged without reading it whole."""
        ...

    def run(self, reference: Path, candidates: list[Path], output: Path, **options: Any) -> Any:
        """Compare, write the report into the folder `output`, and return the record."""
        ...

    def show(self, record: Any) -> None:
        """Print the record for people."""
        ...


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and how to read more in a second."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("print_config", "--print-config")
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _complain(_readable(message))
        raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments or bool(os.environ.get("SECATEUR_DEBUG"))
    try:
        task, options = _parse([argument for argument in arguments if argument != "--debug"])
        as_json = options.pop("json")
        with naming_what_was_written():
            record = task.run(**options)
        _print_json(record) if as_json else task.show(record)
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt as interrupt:
        _complain(f"interrupted, {str(interrupt) or 'nothing written'}", label="")
        return INTERRUPTED
    except (ValueError, OSError, ModuleNotFoundError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        _complain(_reason(error))
        return BAD_INPUT


def _parse(arguments: list[str]) -> tuple[Command | Evaluator, dict[str, Any]]:
    """What the arguments ask for, and its options by name."""
    parser = _Parser(prog="secateur", description="Makes 3D and generative models small and fast.")
    parser.add_argument("--version", action="version", version=f"secateur {version('secateur')}")
    domains = parser.add_subcommands(dest="domain", metavar="COMMAND", title="commands")
    groups: dict[str, CommandGroup] = _load_all("secateur.commands")
    for name, group in groups.items():
        sub = _Parser(description=group.help)
        domains.add_subcommand(name, sub, help=group.help)
        actions = sub.add_subcommands(dest="action", metavar="ACTION", title="actions")
        for action, command in group.commands.items():
            actions.add_subcommand(action, _command_parser(command.help, command.configure), help=command.help)
    evaluators: dict[str, Evaluator] = _load_all("secateur.evaluators")
    help = "measure candidates against a reference: quality, speed, size, and a page with pictures"
    domains.add_subcommand("evaluate", _command_parser(help, partial(_configure_evaluate, evaluators)), help=help)

    chosen = parser.parse_args(arguments or ["--help"])
    options: Namespace = chosen[chosen.domain]
    if chosen.domain == "evaluate":
        return _pick_evaluator(evaluators, options.as_dict())
    named = options[options.action].as_dict()
    del named["config"]
    return groups[chosen.domain].commands[options.action], named


def _command_parser(help: str, configure: Callable[[ArgumentParser], object]) -> ArgumentParser:
    parser = _Parser(description=help)
    configure(parser)
    parser.add_argument("--config", action="config", metavar="RECIPE.yaml", help="read options from a recipe")
    parser.add_argument("--json", action="store_true", help="print only the record, as JSON, on stdout")
    return parser


def _configure_evaluate(evaluators: Mapping[str, Evaluator], parser: ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what candidates are measured against")
    parser.add_argument("candidates", type=Path, nargs="+", metavar="CANDIDATE", help="what is measured")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the report")
    flags = {flag: how for evaluator in evaluators.values() for flag, how in evaluator.options.items()}
    for flag, how in flags.items():
        parser.add_argument(flag, **how)


def _pick_evaluator(evaluators: Mapping[str, Evaluator], options: dict[str, Any]) -> tuple[Evaluator, dict[str, Any]]:
    """The evaluator of the reference's kind, and those of the options that are its own."""
    reference = options["reference"]
    for path in (reference, *options["candidates"]):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    evaluator = next((one for one in evaluators.values() if one.accepts(reference)), None)
    if evaluator is None:
        raise ValueError(f"{reference}: of no kind that can be evaluated; kinds are {', '.join(evaluators)}")
    own = {flag.lstrip("-").replace("-", "_") for flag in evaluator.options}
    return evaluator, {name: options[name] for name in {"reference", "candidates", "output", "json"} | own}


def argument_type(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`parse` as the type of an argument, so that the message of its ValueError reaches the user whole."""

    def checked(value: Any) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _load_all(group: str) -> dict[str, Any]:
    """The objects of an entry-point group by name."""
    found = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            raise ValueError(f"{group} {entry.name!r} ({entry.value}) cannot be loaded: {error}") from error
    return found


def _print_json(record: Any) -> None:
    from secateur.report.record import to_json

    print(json.dumps(to_json(record), indent=2, allow_nan=False))


def _complain(message: str, label: str = "error: ") -> None:
    with contextlib.suppress(BrokenPipeError):
        print(f"secateur: {label}{' '.join(message.split())}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    if isinstance(error, MemoryError):
        return f"not enough memory {error}"
    return str(error) or type(error).__name__


def _readable(message: str) -> str:
    """A message of the parser in the words of the command line."""
    message = re.sub(r'Parser key "([\w.]+)":', lambda key: f"--{key[1].split('.')[-1].replace('_', '-')}:", message)
    message = re.sub(r"Expected a <class 'int'>", "expected a whole number", message)
    required = re.fullmatch(r"the following arguments are required: (.*)", message)
    if required:
        names = ", ".join(name.strip().split(".")[-1] for name in required[1].split(","))
        message = f"missing: {names}"
    return re.sub(r'expected "[\w.]+" to be one of \{(.*)\}, but it was not provided\.?', r"choose one of \1", message)
