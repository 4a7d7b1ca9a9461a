"""`secateur evaluate`: its arguments, and what it does with them. Help must not wait for torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from secateur.cli import Command
from secateur.evaluation.evaluator import Evaluator, carry_out, write
from secateur.files import check_folder

if TYPE_CHECKING:
    from secateur.evaluation.record import EvaluationRecord

WORSE = 1
"""Exit code where a candidate got worse and `--fail-on-worse` was given."""


def evaluate_any(evaluators: Mapping[str, Evaluator]) -> Command:
    """The command that picks an evaluator by what it is given, and merges runs.

    Args:
        evaluators: by the name of their kind.
    """
    flags = {flag: how for evaluator in evaluators.values() for flag, how in evaluator.options.items()}
    help = "measure candidates against a reference: quality, speed, size, and a page with pictures"
    return _command(help, flags, partial(_evaluate_or_merge, evaluators), merges=True)


def evaluate_one(help: str, evaluator: Evaluator) -> Command:
    """The command of a domain that evaluates things of its kind.

    Args:
        help: one line that says what it does.
        evaluator: of the kind.
    """
    return _command(help, evaluator.options, partial(_evaluate, evaluator), merges=False)


def _command(
    help: str, flags: Mapping[str, Mapping[str, Any]], run: Callable[..., EvaluationRecord], merges: bool
) -> Command:
    return Command(help, partial(_configure, flags, merges), run, _show, _exit_code)


def _configure(flags: Mapping[str, Mapping[str, Any]], merges: bool, parser: ArgumentParser) -> None:
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what candidates are measured against")
    parser.add_argument("candidates", type=Path, nargs="*", metavar="CANDIDATE", help="what is measured")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the report")
    if merges:
        parser.add_argument(
            "--merge",
            action="store_true",
            help="measure nothing: the arguments are folders of runs with one reference, put into one comparison",
        )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD.json",
        help="an older results.json, or its folder: say what got better or worse beyond the noise",
    )
    parser.add_argument(
        "--fail-on-worse", action="store_true", help="exit with 1 where --compare finds that a candidate got worse"
    )
    for flag, how in flags.items():
        parser.add_argument(flag, **how)


def _evaluate(
    evaluator: Evaluator,
    *,
    reference: Path,
    candidates: list[Path],
    output: Path,
    compare: Path | None,
    fail_on_worse: bool,
    **options: Any,
) -> EvaluationRecord:
    if not candidates:
        raise ValueError("missing: candidates")
    _check_compare(compare, fail_on_worse)
    own = {_name_of(flag) for flag in evaluator.options}
    named = {name: value for name, value in options.items() if name in own}
    return carry_out(evaluator, reference, candidates, output, compare, **named)


def _evaluate_or_merge(evaluators: Mapping[str, Evaluator], *, merge: bool, **options: Any) -> EvaluationRecord:
    reference, candidates = options["reference"], options["candidates"]
    for path in (reference, *candidates):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    if merge:
        _check_flags(evaluators, None, options)
        _check_compare(options["compare"], options["fail_on_worse"])
        return merge_runs([reference, *candidates], options["output"], options["compare"])
    kind = next((name for name, one in evaluators.items() if one.accepts(reference)), None)
    if kind is None:
        raise ValueError(f"{reference}: of no kind that can be evaluated; kinds are {', '.join(evaluators)}")
    _check_flags(evaluators, kind, options)
    return _evaluate(evaluators[kind], **options)


def _check_flags(evaluators: Mapping[str, Evaluator], kind: str | None, options: Mapping[str, Any]) -> None:
    """Refuse flags that were given and that only other kinds of things heed."""
    own = {} if kind is None else evaluators[kind].options
    flags = {flag: how for evaluator in evaluators.values() for flag, how in evaluator.options.items()}
    for flag, how in flags.items():
        plain = how.get("default", False if how.get("action") == "store_true" else None)
        if flag in own or options[_name_of(flag)] == plain:
            continue
        kinds = ", ".join(name for name, evaluator in evaluators.items() if flag in evaluator.options)
        where = "--merge" if kind is None else f"one of {kind}"
        raise ValueError(f"{flag} belongs to an evaluation of {kinds}, this is {where}")


def _name_of(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def merge_runs(folders: list[Path], output: Path, compare: Path | None = None) -> EvaluationRecord:
    """Put the records of runs into one, and write it with a page of tables and plots.

    Args:
        folders: of the runs, or their `results.json`.
        output: folder of the report.
        compare: an older record, or its folder.

    Raises:
        FileNotFoundError: a record is not there.
        NotADirectoryError, PermissionError: the folder of the report cannot be written to.
        ValueError: a file is no record, or the runs do not fit together.
    """
    from secateur.evaluation.decode import load_record
    from secateur.evaluation.merge import merge_records

    check_folder(output)
    old = None if compare is None else load_record(compare)
    record = merge_records([load_record(folder) for folder in folders], [str(folder) for folder in folders])
    return write(record, None, output, old, None if compare is None else str(compare))


def _check_compare(compare: Path | None, fail_on_worse: bool) -> None:
    if fail_on_worse and compare is None:
        raise ValueError("--fail-on-worse says how --compare ends: give an older record with --compare")


def _show(record: EvaluationRecord) -> None:
    from secateur.evaluation.show import show_record

    show_record(record)


def _exit_code(record: EvaluationRecord, options: Mapping[str, Any]) -> int:
    return WORSE if options["fail_on_worse"] and record.worse else 0
