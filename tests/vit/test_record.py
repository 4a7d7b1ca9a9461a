"""An evaluation of vision transformers as the shared record."""

import json
from pathlib import Path

import jsonschema
import pytest

from secateur.evaluation.compare import compare_records
from secateur.evaluation.run import Start
from secateur.evaluation.schema import record_schema
from secateur.report.record import to_json
from tests.vit.models import random_model
from tests.vit.test_evaluate import disturbed, noise
from vit.evaluate import evaluate
from vit.record import record_of


def test_the_record_says_what_was_measured() -> None:
    model = random_model("vit")
    other = disturbed(random_model("vit"))
    images = noise(40)
    found, _ = evaluate(model, {"same": model, "other": other}, images, batch_size=8, repeats=3)
    record = record_of(found, [Path("dense"), Path("same"), Path("other")], Start.now(), "my-vit")
    jsonschema.validate(json.loads(json.dumps(to_json(record), allow_nan=False)), record_schema())
    assert (record.kind, record.reference.name) == ("vit", "my-vit")
    same, changed = record.candidates
    accuracy, answers = changed.measurements["accuracy"], found.candidates[1].classified
    assert answers is not None and accuracy.value == answers.accuracy and accuracy.samples == 40
    assert accuracy.noise is not None and accuracy.noise.value == answers.accuracy_error
    assert accuracy.change is not None and accuracy.change.mean == pytest.approx(answers.change)
    assert accuracy.interval is not None and accuracy.interval.low <= answers.accuracy <= accuracy.interval.high
    assert same.measurements["agreement"].value == 1.0
    assert [(pair.candidate, pair.against, pair.measurement) for pair in record.pairs] == [
        ("same", "other", "accuracy")
    ]
    assert record.pairs[0].difference.mean == pytest.approx(-answers.change)
    assert changed.parts["classes"].columns["class_accuracy"].values == tuple(answers.by_class.values())
    assert changed.details["confusion"] == to_json(answers.confusion)
    assert changed.measurements["macs"].value == pytest.approx(found.reference.macs, rel=1e-6)
    rates = changed.measurements["images_per_second"]
    assert rates.noise is not None and len(rates.noise.repeats) == 3
    assert rates.value == max(rates.noise.repeats) == found.candidates[1].images_per_second
    verdicts = {change.verdict for change in compare_records(record, record, "itself").changes}
    assert verdicts == {"within noise"}
