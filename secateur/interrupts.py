"""Ctrl-C, wherever it strikes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming_what_was_written(written: Sequence[Path] = ()) -> Iterator[None]:
    """Let Ctrl-C out as a KeyboardInterrupt that says which files were written before it struck.

    Compiled code that is struck raises a SystemError, with the KeyboardInterrupt as its cause: that becomes one, too.

    Args:
        written: may grow while the context is open.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemError) as stop:
        if isinstance(stop, KeyboardInterrupt) and stop.args:
            raise
        if not is_interrupt(stop):
            raise
        names = ", ".join(str(path) for path in written)
        raise KeyboardInterrupt(*([f"written before: {names}"] if names else [])) from None


@contextmanager
def saying_how_to_go_on(checkpoint: Path | None) -> Iterator[None]:
    """Let Ctrl-C out of a training as a KeyboardInterrupt that says what is left to a user of the command line.

    Args:
        checkpoint: of the training; None: it keeps none.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if checkpoint is None:
            raise KeyboardInterrupt("nothing written; --checkpoint FILE would have kept what was trained") from None
        raise KeyboardInterrupt(f"{str(stop) or 'nothing saved yet'}; the same command with --resume goes on") from None


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C struck: in Python, or in compiled code, which raises another error because of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
