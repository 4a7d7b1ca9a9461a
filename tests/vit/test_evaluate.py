"""Numbers of an evaluation by hand, and pictures of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from secateur.report.page import write_report
from secateur.surgery.plan import Size
from tests.vit.images import noise
from tests.vit.models import random_model
from vit.choose import StepPlan
from vit.evaluate import DENSE, classified, draw_tokens, evaluate
from vit.report import draw_units, evaluation_page, kept_units
from vit.tokens import Counts, ReducedModel, TokenNorm


def test_answers_are_counted_by_hand() -> None:
    images = noise(4, classes=2)  # labels 0, 1, 0, 1
    dense = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    small = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    found = classified(small, dense, images)
    assert found.accuracy == 0.5 and found.change == pytest.approx(-0.25) and found.agreement == 0.25
    assert found.by_class == {"a": 0.5, "b": 0.5}
    assert found.confusion == ((1, 1), (1, 1))
    difference = torch.tensor([0.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    assert found.change_error == pytest.approx(float(difference.std()) / 2)


def test_a_model_against_itself_changes_nothing(tmp_path: Path) -> None:
    model = random_model("vit")
    record, pictures = evaluate(model, {"same": model}, noise(10), batch_size=4, repeats=1)
    one = record.candidates[0]
    assert one.classified is not None and one.classified.agreement == 1.0 and one.classified.change == 0.0
    assert one.macs == record.reference.macs and not pictures
    assert one.cost.batch_size == 4 and one.cost.latency.threads == 1
    page = write_report(evaluation_page(record, pictures, "dense"), record, tmp_path)
    assert "same against dense, on the same 10 images" in page.read_text()


def test_kept_tokens_are_drawn_on_the_page(tmp_path: Path) -> None:
    model = random_model("vit")
    reduced = ReducedModel(random_model("vit"), TokenNorm(), Counts((4, 2, 1))).eval()
    strips = draw_tokens(reduced, noise(2))
    assert len(strips) == 2 and strips[0].shape[1] > 2 * strips[0].shape[0]
    record, pictures = evaluate(model, {"fewer": reduced}, noise(6), batch_size=3, repeats=1, shown=2)
    assert len(pictures["fewer"]) == 2
    assert (
        "Tokens that are left" in write_report(evaluation_page(record, pictures, "dense"), record, tmp_path).read_text()
    )
    assert not draw_tokens(model, noise(2))


def test_what_is_left_of_units_multiplies_over_steps() -> None:
    size = Size(1, 4, 1)
    steps = [
        StepPlan("static", size, {"layers.0.mlp.neurons": (5, 10), "layers.0.attention.heads": (1, 2)}, None),
        StepPlan("static", size, {"layers.0.mlp.neurons": (2, 5), "layers.1.mlp.neurons": (5, 5)}, None),
        StepPlan("greedy", size, {"layers.1.attention": (0, 1)}, None),
    ]
    found = kept_units(steps)
    assert found == {"neurons": [0.2, 1.0], "heads": [0.5], "modules": [0.0]}
    assert draw_units(found).shape[2] == 3


class Broken(nn.Module):
    def __init__(self, model: nn.Module, value: float) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits[:, : int(self.value)] * self.value


def test_outputs_that_are_wrong_are_refused() -> None:
    model = random_model("vit")
    with pytest.raises(ValueError, match="is the reference"):
        evaluate(model, {DENSE: model}, noise(4))
    with pytest.raises(ValueError, match=r"gives outputs \(4, 2\), the dense model gives \(4, 5\)"):
        evaluate(model, {"small": Broken(model, 2.0)}, noise(4))
