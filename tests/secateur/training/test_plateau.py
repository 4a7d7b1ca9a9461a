"""Rates fall where validation no longer improves, also across a stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.training import fit
from secateur.training.plateau import FallOnPlateau, falls
from tests.secateur.training.modules import DATA, Automatic, send


class Scripted(Automatic):
    """Validation gives a list of scores; remembers the rate of each step."""

    SCORES = (1.0, 3.0, 2.0, 2.5, 2.0, 2.9, 4.0, 1.0, 1.0, 1.0)

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self.rates: list[float] = []

    def validation_score(self) -> float:
        return self.SCORES[self.trainer.global_step // 2]

    def training_step(self, batch: Any, step: int) -> Any:
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, step)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1.0)


def test_a_fall_follows_more_than_patience_scores_in_vain() -> None:
    scores = Scripted.SCORES
    assert [falls(scores[:count], 2) for count in range(len(scores) + 1)] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert falls(scores, 0) == 7
    assert falls([1.0] * 5, 3) == 1
    assert falls([], 3) == 0


def test_rates_fall_after_the_validation_that_shows_it() -> None:
    module = Scripted()
    fit(module, DATA, steps=18, validate_every=2, callbacks=[FallOnPlateau(patience=2, factor=0.1)])
    assert module.rates == pytest.approx([1.0] * 8 + [0.1] * 10)


def test_a_resumed_run_goes_on_with_the_rate_that_it_had(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 18, "validate_every": 2, "checkpoint": tmp_path / "run.ckpt"}
    stopped, resumed = Scripted(send(signal.SIGINT, at=10)), Scripted()
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, DATA, **options, callbacks=[FallOnPlateau(patience=2)])
    fit(resumed, DATA, **options, resume=True, callbacks=[FallOnPlateau(patience=2)])
    assert stopped.rates + resumed.rates == [1.0] * 8 + [0.5] * 10


def test_what_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ValueError, match="give fit validate_every"):
        fit(Scripted(), DATA, steps=2, callbacks=[FallOnPlateau()])
    for options in ({"patience": -1}, {"factor": 1.0}):
        with pytest.raises(ValueError, match="patience >= 0 and 0 < factor < 1"):
            FallOnPlateau(**options)  # type: ignore[arg-type]
