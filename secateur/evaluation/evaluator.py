"""What a domain gives the instrument: an evaluator, which measures and draws. Writing and comparing is done here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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

        Nothing needs to be written: the instrument writes `results.json` and `index.html` into the folder `output`. Files
        of the domain's own may go there too.
        """
        ...
