"""Evaluations that are stopped between two chunks, for tests."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.evaluation import chunks


def count_chunks(monkeypatch: pytest.MonkeyPatch, stop_before: int | None = None) -> list[int]:
    """The numbers of the chunks that are made from here on; Ctrl-C comes instead of the one at place `stop_before`."""
    made: list[int] = []
    keep = chunks._Kept.write

    def write(self: Any, number: int, rows: chunks.Rows) -> None:
        if len(made) == stop_before:
            raise KeyboardInterrupt
        made.append(number)
        keep(self, number, rows)

    monkeypatch.setattr(chunks._Kept, "write", write)
    return made
