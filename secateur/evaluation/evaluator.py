"""What a domain gives the instrument: an evaluator, which measures and draws. Writing and comparing is done here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from secateur.files import check_folder

if TYPE_CHECKING:
    from secateur.evaluation.record import EvaluationRecord
    from secateur.report.page import Page


class Evaluated(NamedTuple):
    """What an evaluator has found.

    Args:
        record: the measurements.
        page: what people see of them: the pictures and the tables that are the domain's own.
    """

    record: EvaluationRecord
    page: Page


class Evaluator(Protocol):
    """Measures candidates against a reference of one kind.

    A domain offers one through the entry-point group `secateur.evaluators`. Its module is loaded for every call of the
    command, so it imports torch and the like only inside functions.
    """

    options: Mapping[str, Mapping[str, Any]]
    """Flag -> keyword arguments of `add_argument`; evaluators that name the same flag share it."""

    def accepts(self, path: Path) -> bool:
        """Whether the thing at `path` is of this kind, judged without reading it whole."""
        ...

    def run(self, reference: Path, candidates: list[Path], output: Path, **options: Any) -> Evaluated:
        """Measure, and draw the page.

        Nothing needs to be written: the instrument writes `results.json` and `index.html` into the folder `output`.
        Files of the domain's own may go there too.
        """
        ...


def carry_out(
    evaluator: Evaluator,
    reference: Path,
    candidates: list[Path],
    output: Path,
    compare: Path | None = None,
    **options: Any,
) -> EvaluationRecord:
    """Measure, compare with an older record where one is given, and write `results.json` and `index.html`.

    Args:
        evaluator: of the reference's kind.
        reference: what the candidates stand for.
        candidates: what is measured.
        output: folder of the report.
        compare: an older record, or the folder that has it. It is read first, so that it may be the one in `output`.
        options: the evaluator's own.

    Raises:
        FileNotFoundError: the older record is not there.
        NotADirectoryError, PermissionError: the folder of the report cannot be written to; said before anything runs.
        ValueError: the older record is none, or one of another kind; or what the evaluator raises.
    """
    from secateur.evaluation.decode import load_record

    check_folder(output)
    old = None if compare is None else load_record(compare)
    record, page = evaluator.run(reference, candidates, output, **options)
    return write(record, page, output, old, None if compare is None else str(compare))


def write(
    record: EvaluationRecord,
    page: Page | None,
    output: Path,
    old: EvaluationRecord | None = None,
    against: str | None = None,
) -> EvaluationRecord:
    """Write a record and its page, with what has changed since an older record; returns the record with that in it.

    Args:
        record: the measurements.
        page: the pictures and tables that are the domain's own; None: there are none.
        output: folder, made when it is not there.
        old: the older record.
        against: what that is called.

    Raises:
        ValueError: the older record is of another kind.
    """
    from secateur.evaluation.compare import compare_records
    from secateur.report.evaluation import whole_page
    from secateur.report.page import write_report

    if old is not None:
        record = replace(record, comparison=compare_records(record, old, against or "an older record"))
    write_report(whole_page(record, page), record, output)
    return record
