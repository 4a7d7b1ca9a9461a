"""The `secateur` command: finds the domains' commands, and turns what goes wrong into one clear line.

A domain offers its commands through the entry-point group `secateur.commands` (name -> `CommandGroup`), and its way to
compare two things of its kind through `secateur.evaluators` (name -> `secateur.evaluation.evaluator.Evaluator`). The
modules that these name are loaded for every call, so they import torch and the like only inside functions.
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
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points, version
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from secateur.evaluation.run import typed
from secateur.interrupts import naming_what_was_written

BAD_INPUT = 2
INTERRUPTED = 130


def _done(record: Any, options: Mapping[str, Any]) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Args:
        help: one line that says what it does.
        configure: adds its arguments to a parser.
        run: does it; called with the arguments by name; returns a record that `to_json` understands.
        show: prints the record for people.
        exit_code: of the process, from the record and the options; 0 where nothing says otherwise.
    """

    help: str
    configure: Callable[[ArgumentParser], object]
    run: Callable[..., Any]
    show: Callable[[Any], None]
    exit_code: Callable[[Any, Mapping[str, Any]], int] = _done


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """The commands of a domain by name, and one line that says what the domain is."""

    help: str
    commands: Mapping[str, Command]


class _Parser(ArgumentParser):
    """Says what is wrong in one line, and how to read more in a second."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("print_config", "--print-config")
        super().__init__(*args, **kwargs)

    typed: Sequence[str] = ()
    """The whole command line, where it is known."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        _complain(_readable(message) + (_similar(unknown[1], self._flags()) if unknown else ""))
        raise SystemExit(BAD_INPUT)

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """A recipe of options. jsonargparse loses the name of an unknown key below two levels of commands."""
        found = super().parse_path(cfg_path, *args, **kwargs)
        known = [action.dest for action in self._actions]
        for key in found.keys():  # noqa: SIM118  no mapping
            if key not in known:
                raise TypeError(f"{cfg_path}: there is no option {key!r}{_similar(key, known)}")
        return found

    def _flags(self) -> list[str]:
        """The flags of the command that was typed."""
        parser: argparse.ArgumentParser = self
        for word in self.typed:
            below = next((action for action in parser._actions if action.dest in ("domain", "action")), None)
            if below is None or word not in (below.choices or ()):
                break
            parser = below.choices[word]  # type: ignore[index]
        return list(parser._option_string_actions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C, or what a command says."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in arguments or bool(os.environ.get("SECATEUR_DEBUG"))
    try:
        task, options = _parse([argument for argument in arguments if argument != "--debug"])
        as_json = options.pop("json")
        with typed(arguments), naming_what_was_written():
            record = task.run(**options)
        _print_json(record) if as_json else task.show(record)
        return task.exit_code(record, options)
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


def _parse(arguments: list[str]) -> tuple[Command, dict[str, Any]]:
    """What the arguments ask for, and its options by name."""
    from secateur.evaluation.command import evaluate_any  # which needs this module

    parser = _Parser(prog="secateur", description="Makes 3D and generative models small and fast.")
    parser.add_argument("--version", action="version", version=f"secateur {version('secateur')}")
    parser.typed = arguments
    domains = parser.add_subcommands(dest="domain", metavar="COMMAND", title="commands")
    groups: dict[str, CommandGroup] = _load_all("secateur.commands")
    for name, group in groups.items():
        sub = _Parser(description=group.help)
        domains.add_subcommand(name, sub, help=group.help)
        actions = sub.add_subcommands(dest="action", metavar="ACTION", title="actions")
        for action, command in group.commands.items():
            actions.add_subcommand(action, _command_parser(command.help, command.configure), help=command.help)
    evaluate = evaluate_any(_load_all("secateur.evaluators"))
    domains.add_subcommand("evaluate", _command_parser(evaluate.help, evaluate.configure), help=evaluate.help)

    chosen = parser.parse_args(arguments or ["--help"])
    options: Namespace = chosen[chosen.domain]
    evaluating = chosen.domain == "evaluate"
    command = evaluate if evaluating else groups[chosen.domain].commands[options.action]
    named = (options if evaluating else options[options.action]).as_dict()
    del named["config"]
    return command, named


def _command_parser(help: str, configure: Callable[[ArgumentParser], object]) -> ArgumentParser:
    parser = _Parser(description=help)
    configure(parser)
    parser.add_argument("--config", action="config", metavar="RECIPE.yaml", help="read options from a recipe")
    parser.add_argument("--json", action="store_true", help="print only the record, as JSON, on stdout")
    return parser


class _Unfit(argparse.ArgumentTypeError, ValueError):
    """A value that will not do: argparse knows the one, jsonargparse, which reads recipes, the other."""


def later(module: str, name: str) -> Callable[..., Any]:
    """The function of that name, whose module is imported when it is called: help must not wait for torch."""

    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **options)

    return call


def argument_type(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`parse` as the type of an argument, so that the message of its ValueError reaches the user whole."""

    def checked(value: Any) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise _Unfit(str(error)) from error

    return checked


def _similar(name: str, known: Sequence[str]) -> str:
    found = get_close_matches(name, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _load_all(group: str) -> dict[str, Any]:
    """The objects of an entry-point group by name; the core's own last, for a scene may be a folder of images, too."""
    found = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.value.startswith("secateur."), entry.name)):
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
